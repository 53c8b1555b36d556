"""How calls of tools are written: by the model's own format, or in plain lines where it has none.

calc: 12*7          the model calls
result: 84          and is answered
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from crucible_train.errors import ConfigError, RenderError
from crucible_train.renderers import ParsedResponse, Renderer, TrainOnWhat
from crucible_train.rl.tools import Tool
from crucible_train.types import Message, ToolCall

Call = ToolCall | str
"""A call that was read, or what is wrong with one that could not be."""


class ToolSyntax(Protocol):
    """How tools are declared, called and answered."""

    def declarations(self, tools: Sequence[Tool]) -> Sequence[Mapping[str, Any]]:
        """What the renderer is told of them."""

    def instructions(self, tools: Sequence[Tool]) -> str:
        """What the model is told of them in words; empty where the renderer tells it."""

    def calls(self, answer: ParsedResponse, tools: Mapping[str, Tool]) -> Sequence[Call]:
        """The calls of an answer, in order."""

    def shown(self, call: ToolCall) -> Message:
        """The assistant's message that makes a call, for examples."""

    def results(self, answered: Sequence[tuple[Call, str]]) -> Sequence[Message]:
        """What the model is answered."""


class NativeSyntax:
    """The tools of the model's own chat format."""

    def declarations(self, tools: Sequence[Tool]) -> Sequence[Mapping[str, Any]]:
        """All of them."""
        return [tool.declaration for tool in tools]

    def instructions(self, tools: Sequence[Tool]) -> str:
        """None: the format declares them."""
        return ""

    def calls(self, answer: ParsedResponse, tools: Mapping[str, Tool]) -> Sequence[Call]:
        """What the renderer read, then what it could not read."""
        unread = [f"this is no call of a tool: {text.strip()}" for text in answer.unparsed_tool_calls]
        return [*answer.message.tool_calls, *unread]

    def shown(self, call: ToolCall) -> Message:
        """A message with a call."""
        return Message("assistant", "", (call,))

    def results(self, answered: Sequence[tuple[Call, str]]) -> Sequence[Message]:
        """A message of the tool for each; of the user where none was called."""
        if not any(isinstance(call, ToolCall) for call, _ in answered):
            return [Message("user", "\n".join(result for _, result in answered))]
        return [
            Message("tool", result, tool_call_id=call.id, name=call.name)
            if isinstance(call, ToolCall)
            else Message("tool", result)
            for call, result in answered
        ]


class LineSyntax:
    """A call is a line ``name: argument``; tools of several arguments take a JSON object."""

    def declarations(self, tools: Sequence[Tool]) -> Sequence[Mapping[str, Any]]:
        """None: the format has no place for them."""
        return ()

    def instructions(self, tools: Sequence[Tool]) -> str:
        """How each is called."""
        lines = [f"{tool.name}: {_argument(tool)}   ({tool.declaration['function']['description']})" for tool in tools]
        return "\n".join(["You can call a tool by writing a line, and are told its result:", *lines])

    def calls(self, answer: ParsedResponse, tools: Mapping[str, Tool]) -> Sequence[Call]:
        """The lines that begin with the name of a tool; none where the answer was cut off, perhaps within one."""
        found: list[Call] = []
        if not answer.termination.is_clean:
            return found
        for line in answer.message.text.splitlines():
            name, colon, argument = line.partition(":")
            if colon and (tool := tools.get(name.strip())) is not None:
                found.append(ToolCall(tool.name, _as_json(tool, argument.strip())))
        return found

    def shown(self, call: ToolCall) -> Message:
        """A line."""
        values = list(json.loads(call.arguments).values())
        return Message("assistant", f"{call.name}: {values[0] if len(values) == 1 else call.arguments}")

    def results(self, answered: Sequence[tuple[Call, str]]) -> Sequence[Message]:
        """A line each, from the user."""
        return [Message("user", "\n".join(f"result: {result}" for _, result in answered))]


def syntax_for(renderer: Renderer, tools: Sequence[Tool], wanted: Literal["auto", "native", "lines"]) -> ToolSyntax:
    """How tools are called in a chat format; ``auto`` takes its own way where it has one.

    Raises:
        ConfigError: its own way is wanted, and it has none.
    """
    has_own = bool(tools) and _has_own(renderer, tools)
    if wanted == "native" and not has_own:
        raise ConfigError(f"tool_syntax: {renderer.name} has no tools of its own; use lines")
    return NativeSyntax() if has_own and wanted != "lines" else LineSyntax()


def _has_own(renderer: Renderer, tools: Sequence[Tool]) -> bool:
    """Whether a format takes declarations, and reads back a call as it writes it."""
    asked = Message("user", "?")
    called = Message("assistant", "", (ToolCall(tools[0].name, "{}"),))
    declared = [tool.declaration for tool in tools]
    try:
        ids, weights = renderer.build_supervised_example([asked, called], TrainOnWhat.LAST_ASSISTANT_MESSAGE, declared)
    except RenderError:
        return False
    written = ids.to_array()[weights > 0].tolist()
    return bool(renderer.parse_response(written, [asked]).message.tool_calls)


def _argument(tool: Tool) -> str:
    names = list(tool.arguments_model.model_fields)
    return names[0] if len(names) == 1 else json.dumps(dict.fromkeys(names, "..."))


def _as_json(tool: Tool, argument: str) -> str:
    """The arguments of a line: a JSON object as it stands, or the only argument's text."""
    names = list(tool.arguments_model.model_fields)
    if len(names) != 1 or re.fullmatch(r"\{.*\}", argument):
        return argument or "{}"
    return json.dumps({names[0]: argument})
