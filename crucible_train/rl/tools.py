"""Tools a model may call: typed Python functions.

The declaration comes from a function's signature and its docstring (Google style); arguments are checked against the
signature before the function sees them. Whatever goes wrong is an answer to the model, never an error of the run.
"""

import asyncio
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from crucible_train.errors import ConfigError, Interrupted

_ARGUMENT = re.compile(r"^\s*\*{0,2}(\w+)(?:\s*\(.*?\))?:\s*(.*)$")
_SECTION = re.compile(r"^\s*(Args|Arguments|Returns|Yields|Raises|Examples?|Notes?):\s*$")


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        function: what is called; a coroutine function is awaited, any other runs in a thread of its own.
        name: by which it is called.
        timeout_s: seconds a call may take; a thread that takes longer is left behind, as threads cannot be ended, and
            is waited for when the event loop is closed.
        max_characters: of a result; what is beyond is cut off.
    """

    function: Callable[..., Any]
    name: str
    timeout_s: float = 5.0
    max_characters: int = 2000

    @classmethod
    def of(cls, function: Callable[..., Any], *, timeout_s: float = 5.0, max_characters: int = 2000) -> Self:
        """The tool that a function is.

        Raises:
            ConfigError: it has an argument without a type, or one that cannot be given by name.
        """
        made = cls(function, function.__name__, timeout_s, max_characters)
        _ = made.arguments_model
        return made

    @cached_property
    def arguments_model(self) -> type[BaseModel]:
        """What its arguments must be."""
        hints = typing.get_type_hints(self.function, include_extras=True)
        told = _told_arguments(inspect.getdoc(self.function) or "")
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if name not in hints or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise ConfigError(f"tool {self.name}: argument {name!r} needs a type, and to be given by name")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (hints[name], Field(default, description=told.get(name)))
        return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)

    @cached_property
    def declaration(self) -> Mapping[str, Any]:
        """The OpenAI-style declaration."""
        schema = self.arguments_model.model_json_schema()
        parameters = {key: value for key, value in schema.items() if key != "title"}
        parameters["properties"] = {
            name: {key: value for key, value in one.items() if key != "title"}
            for name, one in schema.get("properties", {}).items()
        }
        function = {"name": self.name, "description": _summary(self.function), "parameters": parameters}
        return {"type": "function", "function": function}

    async def call(self, arguments: str) -> str:
        """Call it with a JSON object of arguments: what it returns, as text, or what went wrong."""
        try:
            read = self.arguments_model.model_validate_json(arguments)
        except ValidationError as error:
            return f"error: {_problems(error)}"
        values = {name: getattr(read, name) for name in self.arguments_model.model_fields}
        limit = asyncio.timeout(self.timeout_s)
        try:
            async with limit:
                result = await self._run(values)
            return _text(result)[: self.max_characters]
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is for the model to read
            if limit.expired():
                return f"error: {self.name} took longer than {self.timeout_s:g} s"
            return f"error: {type(error).__name__}: {error}"[: self.max_characters]

    async def _run(self, values: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(**values)
        return await asyncio.to_thread(self.function, **values)


def by_name(tools: Sequence[Tool]) -> Mapping[str, Tool]:
    """Tools by their names.

    Raises:
        ConfigError: two have the same.
    """
    found = {tool.name: tool for tool in tools}
    if len(found) < len(tools):
        raise ConfigError(f"tools: two have the same name: {', '.join(tool.name for tool in tools)}")
    return found


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    return json.dumps(result, ensure_ascii=False, default=str)


def _problems(error: ValidationError) -> str:
    lines = [f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg']}" for one in error.errors()]
    return "; ".join(lines)


def _summary(function: Callable[..., Any]) -> str:
    """The docstring up to its first section."""
    lines: list[str] = []
    for line in (inspect.getdoc(function) or "").splitlines():
        if _SECTION.match(line):
            break
        lines.append(line)
    return "\n".join(lines).strip()


def _told_arguments(docstring: str) -> Mapping[str, str]:
    """What the docstring says of each argument."""
    told: dict[str, str] = {}
    is_within, indent, name = False, 0, ""
    for line in docstring.splitlines():
        if section := _SECTION.match(line):
            is_within, name = section[1] in ("Args", "Arguments"), ""
        elif is_within and line.strip():
            depth = len(line) - len(line.lstrip())
            if (found := _ARGUMENT.match(line)) and (not name or depth <= indent):
                name, indent = found[1], depth
                told[name] = found[2]
            elif name:
                told[name] += f" {line.strip()}"
    return told
