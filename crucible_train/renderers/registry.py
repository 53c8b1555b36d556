"""Which renderer a name or a model means: one table."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crucible_train.errors import ConfigError
from crucible_train.renderers.base import Renderer
from crucible_train.renderers.chat_template import ChatTemplate
from crucible_train.renderers.deepseek import DeepSeekR1, DeepSeekV3
from crucible_train.renderers.deepseek_v3_1 import DeepSeekV31, DeepSeekV31Thinking
from crucible_train.renderers.gpt_oss import GptOssHigh, GptOssLow, GptOssMedium, GptOssNoSysprompt
from crucible_train.renderers.kimi_k2 import KimiK2, KimiK2Thinking
from crucible_train.renderers.llama3 import Llama3, Llama31, Llama32
from crucible_train.renderers.model_names import OWN_TEMPLATE, renderer_of_model
from crucible_train.renderers.qwen3 import Qwen3, Qwen3DisableThinking, Qwen3Instruct
from crucible_train.renderers.qwen3_vl import Qwen3VL, Qwen3VLInstruct
from crucible_train.renderers.record import RendererRecord
from crucible_train.renderers.role_colon import RoleColon
from crucible_train.renderers.smollm2 import SmolLM2
from crucible_train.renderers.tokenizer import as_tokenizer

RendererFactory = Callable[..., Renderer]

_RENDERERS: dict[str, RendererFactory] = {
    "deepseekv3": DeepSeekV3,
    "deepseek_r1": DeepSeekR1,
    "deepseekv3_1": DeepSeekV31,
    "deepseekv3_1_thinking": DeepSeekV31Thinking,
    "gpt_oss_no_sysprompt": GptOssNoSysprompt,
    "gpt_oss_low_reasoning": GptOssLow,
    "gpt_oss_medium_reasoning": GptOssMedium,
    "gpt_oss_high_reasoning": GptOssHigh,
    "kimi_k2": KimiK2,
    "kimi_k2_thinking": KimiK2Thinking,
    "llama3": Llama3,
    "llama3_1": Llama31,
    "llama3_2": Llama32,
    "qwen3": Qwen3,
    "qwen3_disable_thinking": Qwen3DisableThinking,
    "qwen3_instruct": Qwen3Instruct,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_instruct": Qwen3VLInstruct,
    "smollm2": SmolLM2,
    "role_colon": RoleColon,
    "chat_template": ChatTemplate,
}

_ALIASES: Mapping[str, str] = {
    "deepseekv3_disable_thinking": "deepseekv3_1",
    "deepseekv3_thinking": "deepseekv3_1_thinking",
}


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


def find_renderer(name: str) -> str | None:
    """The name of the renderer that goes by this name or alias, or None where none does."""
    name = _ALIASES.get(name, name)
    return name if name in _RENDERERS else None


def renderer_name(name_or_model: str, tokenizer: Any) -> str:
    """The name of the renderer for a renderer's name, a model id or a model's folder.

    A model no family claims gets ``chat_template`` if its tokenizer has a template.

    Raises:
        ConfigError: neither is the case.
        ModelError: the folder names its renderer in a file that cannot be read.
    """
    name = find_renderer(name_or_model)
    if name is not None:
        return name
    record = RendererRecord.from_folder(Path(name_or_model))
    if record is not None:
        return _recorded_name(record, Path(name_or_model))
    family = renderer_of_model(name_or_model)
    if family is not None and family != OWN_TEMPLATE:
        return family
    if as_tokenizer(tokenizer).chat_template is not None:
        return OWN_TEMPLATE
    raise ConfigError(
        f"data.renderer: {name_or_model!r} has no chat template; choose one of {', '.join(list_renderers())}"
    )


def get_renderer(name_or_model: str, tokenizer: Any, **options: Any) -> Renderer:
    """The renderer for a name or a model, bound to a tokenizer (ours, transformers' fast ones, or a bare Rust one).

    A folder that records its renderer decides it; the options it was trained with need not be given again.

    Raises:
        ConfigError: the name is unknown, an option is not one of the renderer's, or it is not what the folder records.
        ModelError: the tokenizer is not the one that the folder records.
    """
    name = find_renderer(name_or_model)
    if name is not None:
        return _made(name, tokenizer, options)
    return renderer_for(name_or_model, Path(name_or_model), None, tokenizer, options)[1]


def renderer_for(
    model: str, folder: Path, wanted: str | None, tokenizer: Any, options: Mapping[str, Any]
) -> tuple[str, Renderer]:
    """The renderer of a model, and the name it is registered by.

    Args:
        model: what the model is called.
        folder: where it lies, with the record of its renderer if it has one.
        wanted: a renderer's name to take in place of the model's own.
        tokenizer: the model's.
        options: what is asked for; the others follow the record.

    Raises:
        ConfigError: there is none, an option is unknown, or what is asked for is not what the folder records.
        ModelError: the tokenizer is not the one that the folder records.
    """
    record = RendererRecord.from_folder(folder)
    if record is None:
        name = renderer_name(wanted or model, tokenizer)
        return name, _made(name, tokenizer, options)
    name = _recorded_name(record, folder)
    if wanted is not None:
        record.check_name(find_renderer(wanted) or wanted, folder)
    renderer = _made(name, tokenizer, {**record.options, **options})
    record.check_made(renderer, options, folder)
    return name, renderer


def _recorded_name(record: RendererRecord, folder: Path) -> str:
    name = find_renderer(record.name)
    if name is None:
        known = ", ".join(list_renderers())
        raise ConfigError(f"model: {folder} was trained with the renderer {record.name!r}, which is not one of {known}")
    return name


def _made(name: str, tokenizer: Any, options: Mapping[str, Any]) -> Renderer:
    try:
        return _RENDERERS[name](as_tokenizer(tokenizer), **options)
    except TypeError as error:
        raise ConfigError(f"data.renderer_options: {name}: {str(error).partition('() ')[2] or error}") from error
