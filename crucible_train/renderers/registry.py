"""Which renderer a name or a model means: one table."""

from collections.abc import Callable, Mapping
from typing import Any

from crucible_train.errors import ConfigError
from crucible_train.renderers.base import Renderer
from crucible_train.renderers.chat_template import ChatTemplate
from crucible_train.renderers.role_colon import RoleColon
from crucible_train.renderers.smollm2 import SmolLM2
from crucible_train.renderers.tokenizer import as_tokenizer

RendererFactory = Callable[..., Renderer]

_RENDERERS: dict[str, RendererFactory] = {
    "smollm2": SmolLM2,
    "role_colon": RoleColon,
    "chat_template": ChatTemplate,
}

# Part of a model id, lower case -> renderer; the first match counts, so the more specific stands first.
_MODELS: Mapping[str, str] = {"smollm2": "smollm2"}


def list_renderers() -> list[str]:
    """The names ``get_renderer`` knows."""
    return sorted(_RENDERERS)


def register_renderer(name: str, factory: RendererFactory) -> None:
    """Add a renderer: ``factory(tokenizer, **options)`` makes it.

    Raises:
        ConfigError: the name is taken.
    """
    if name in _RENDERERS:
        raise ConfigError(f"a renderer named {name!r} exists already")
    _RENDERERS[name] = factory


def renderer_name(name_or_model: str, tokenizer: Any) -> str:
    """The name of the renderer for a renderer's name, a model id or a model's folder.

    A model no family claims gets ``chat_template`` if its tokenizer has a template.

    Raises:
        ConfigError: neither is the case.
    """
    if name_or_model in _RENDERERS:
        return name_or_model
    model = name_or_model.lower()
    for part, name in _MODELS.items():
        if part in model:
            return name
    if as_tokenizer(tokenizer).chat_template is not None:
        return "chat_template"
    raise ConfigError(
        f"data.renderer: {name_or_model!r} has no chat template; choose one of {', '.join(list_renderers())}"
    )


def get_renderer(name_or_model: str, tokenizer: Any, **options: Any) -> Renderer:
    """The renderer for a name or a model, bound to a tokenizer (ours, transformers' fast ones, or a bare Rust one).

    Raises:
        ConfigError: the name is unknown or an option is not one of the renderer's.
    """
    name = renderer_name(name_or_model, tokenizer)
    try:
        return _RENDERERS[name](as_tokenizer(tokenizer), **options)
    except TypeError as error:
        raise ConfigError(f"data.renderer_options: {name}: {str(error).partition('() ')[2] or error}") from error
