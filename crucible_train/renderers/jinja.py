"""The Jinja environment chat templates are written for, in a sandbox.

Same settings, filters and functions as transformers gives a template (``tojson`` that keeps Unicode and key order,
``raise_exception``, ``strftime_now``, the ``generation`` tag, loop controls).
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from crucible_train.errors import ConfigError


class TemplateFailure(Exception):
    """The template raised, or could not be run on what it was given."""


def compile_template(source: str, now: str | None) -> Callable[..., str]:
    """Compile a chat template; ``now`` freezes its clock (ISO 8601).

    The result renders keyword arguments to text and raises ``TemplateFailure``.

    Raises:
        ConfigError: the source is not a template, or ``now`` is not a time.
    """
    try:
        frozen = datetime.fromisoformat(now) if now is not None else None
    except ValueError as error:
        raise ConfigError(f"data.renderer_options.now: not an ISO 8601 time: {now!r}") from error
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: (frozen or datetime.now()).strftime(form)
    if not isinstance(source, str):
        raise ConfigError(f"chat template: must be text, not {type(source).__name__}")
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"chat template, line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise ConfigError("chat template: nested too deeply") from error

    def render(**values: Any) -> str:
        try:
            return template.render(**values)
        except Exception as error:  # a template is a program: it can fail in every way a program can
            raise TemplateFailure(str(error) or type(error).__name__) from error

    return render


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _Generation(jinja2.ext.Extension):
    """``{% generation %} ... {% endgeneration %}``: renders what it encloses."""

    tags: set[str] = {"generation"}  # noqa: RUF012  # as the base class declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
