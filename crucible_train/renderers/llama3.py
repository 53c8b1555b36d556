"""Llama 3, 3.1 (and 3.3) and 3.2 Instruct.

<|begin_of_text|><|start_header_id|>system<|end_header_id|>¶¶
Environment: ipython¶                                            (3.1 and 3.2, if there are tools)
Cutting Knowledge Date: December 2023¶Today Date: DATE¶¶         (3.1 and 3.2: always; the system message follows)
SYSTEM<|eot_id|><|start_header_id|>user<|end_header_id|>¶¶
DECLARATIONS                                                     (3.1 and 3.2; or before SYSTEM)
CONTENT<|eot_id|><|start_header_id|>assistant<|end_header_id|>¶¶
{"name": "NAME", "parameters": ARGUMENTS}<|eot_id|><|start_header_id|>ipython<|end_header_id|>¶¶
"RESULT"<|eot_id|><|start_header_id|>assistant<|end_header_id|>¶¶
CONTENT<|eot_id|>                                                (trained: CONTENT<|eot_id|>)

White space round content is left out. Arguments are read and written again with ``, `` and ``: ``, a result is written
as a JSON text. Each of these is what the templates published with the models do. A conversation's ids always begin with
those of its prompts.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, ClassVar

from crucible_train.errors import ConfigError, RenderError
from crucible_train.ports import Tokenizer
from crucible_train.renderers.answers import AnswerReader
from crucible_train.renderers.base import Renderer, Tools
from crucible_train.renderers.checks import check_calls, refuse_images, refuse_unknown_roles
from crucible_train.renderers.llama3_answers import Llama31Reader
from crucible_train.renderers.pieces import NO_MESSAGE, Kind, Piece
from crucible_train.renderers.tokenizer import refuse_lone_surrogate
from crucible_train.types import Message, ToolCall

SPEAKERS = ("system", "user", "assistant", "developer")
TOOLS = ("tool", "ipython")
KNOWLEDGE = "Cutting Knowledge Date: December 2023\nToday Date: "
FORMAT = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)
TOOLS_OF_SYSTEM = (
    "You have access to the following functions. To call a function, please respond with JSON for a function call."
    + FORMAT
)
TOOLS_OF_USER = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n" + FORMAT
)
BEGIN = Piece("<|begin_of_text|>", Kind.CONTROL)


class Llama3(Renderer):
    """Llama 3: every message alike, no tools."""

    name: ClassVar[str] = "llama3"
    stop_tokens: ClassVar[Sequence[str]] = ("<|eot_id|>",)
    reader: ClassVar[type[AnswerReader]] = AnswerReader
    verbatim: ClassVar[Sequence[str] | None] = ()

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse all but text of a known speaker."""
        if tools:
            raise RenderError(f"{self.name} has no tools, but {len(tools)} are declared")
        for index, message in enumerate(messages):
            if message.tool_calls:
                raise RenderError(f"message {index}: tool_calls: {self.name} has no tool calls")
        refuse_unknown_roles(self.name, messages, SPEAKERS)
        _refuse_thinking_and_images(self.name, messages)

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """Every message alike."""
        yield BEGIN
        for index, message in enumerate(messages):
            yield from _turn(message.role, index, message.text.strip())

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The conversation and an open header."""
        yield from self.conversation_pieces(messages, tools)
        yield from _header("ipython" if role == "tool" and self.name != Llama3.name else role, NO_MESSAGE)


class Llama31(Llama3):
    """Llama 3.1 and 3.3: a date in the system message, and tools.

    Args:
        tokenizer: the model's tokenizer.
        date_string: the date of the system message, such as 26 Jul 2024, which is the published template's own where
            none is given.
        tools_in_user_message: whether tools are declared in the first user message or in the system message.
    """

    name = "llama3_1"
    stop_tokens = ("<|eot_id|>", "<|eom_id|>")
    reader = Llama31Reader

    def __init__(
        self, tokenizer: Tokenizer, *, date_string: str | None = None, tools_in_user_message: bool = True
    ) -> None:
        """Fix the date.

        Raises:
            ConfigError: an option is of the wrong type.
        """
        super().__init__(tokenizer)
        if not isinstance(date_string, str | None):
            raise ConfigError(f"data.renderer_options.date_string: must be text, not {date_string!r}")
        if not isinstance(tools_in_user_message, bool):
            raise ConfigError(
                f"data.renderer_options.tools_in_user_message: must be true or false, not {tools_in_user_message!r}"
            )
        self._date = self.default_date() if date_string is None else date_string
        self._tools_in_user_message = tools_in_user_message

    def default_date(self) -> str:
        """The date where none is given."""
        return "26 Jul 2024"

    @property
    def options(self) -> Mapping[str, Any]:
        """The date, and where tools are declared."""
        return {"date_string": self._date, "tools_in_user_message": self._tools_in_user_message}

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse several calls in one message, text beside a call, and what no message can hold."""
        refuse_unknown_roles(self.name, messages, (*SPEAKERS, *TOOLS))
        _refuse_thinking_and_images(self.name, messages)
        check_calls([replace(message, role="tool") if message.role in TOOLS else message for message in messages])
        for index, message in enumerate(messages):
            if len(message.tool_calls) > 1:
                raise RenderError(
                    f"message {index}: tool_calls: {self.name} has one call a message, not {len(message.tool_calls)}"
                )
            if message.tool_calls and message.text.strip():
                raise RenderError(f"message {index}: content: {self.name} has no text beside a tool call")
            for call in message.tool_calls:
                refuse_lone_surrogate(
                    _json(json.loads(call.arguments)), f"message {index}: tool_calls[0].function.arguments"
                )
        if tools is not None and self._tools_in_user_message:
            self._check_first_user(messages)

    def _check_first_user(self, messages: Sequence[Message]) -> None:
        first = 1 if messages[0].role == "system" else 0
        if first == len(messages):
            raise RenderError(f"tools: {self.name} declares them in the first user message, and there is none")
        if messages[first].tool_calls:
            raise RenderError(
                f"message {first}: tool_calls: {self.name} declares tools in this message, which calls one"
            )

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The system message, the first user message where tools are declared in it, and all others alike."""
        yield BEGIN
        rest = list(enumerate(messages))
        index, system = NO_MESSAGE, ""
        if messages[0].role == "system":
            index, system = 0, messages[0].text.strip()
            rest = rest[1:]
        declared = "" if tools is None else _declarations(tools)
        yield from self._system(index, system, None if tools is None else declared)
        if tools is not None and self._tools_in_user_message:
            (index, message), *rest = rest
            yield from _header("user", index)
            yield Piece(TOOLS_OF_USER + declared, Kind.TEXT, index)
            # Whoever speaks first speaks as the user here. An assistant would not write this.
            is_output = message.role != "assistant"
            yield Piece(message.text.strip(), Kind.TEXT, index, is_output)
            yield Piece("<|eot_id|>", Kind.CONTROL, index, is_output)
        for index, message in rest:
            if message.tool_calls:
                yield from _turn("assistant", index, _call(message.tool_calls[0]))
            elif message.role in TOOLS:
                yield from _turn("ipython", index, _json(message.text))
            else:
                yield from _turn(message.role, index, message.text.strip())

    def _system(self, index: int, text: str, declared: str | None) -> Iterator[Piece]:
        environment = "" if declared is None else "Environment: ipython\n"
        in_system = "" if declared is None or self._tools_in_user_message else TOOLS_OF_SYSTEM + declared
        yield from _header("system", index)
        yield Piece(f"{environment}{KNOWLEDGE}{self._date}\n\n{in_system}", Kind.TEXT, index)
        yield Piece(text, Kind.TEXT, index, is_output=True)
        yield Piece("<|eot_id|>", Kind.CONTROL, index, is_output=index != NO_MESSAGE)


class Llama32(Llama31):
    """Llama 3.2, 1B and 3B: as 3.1, but where no date is given it is the day on which the renderer is made.

    So does the published template; give ``date_string`` for ids that are the same tomorrow.
    """

    name = "llama3_2"
    date_option = "date_string"

    def default_date(self) -> str:
        """Today, such as 26 Jul 2024."""
        return date.today().strftime("%d %b %Y")


def _header(speaker: str, index: int) -> Iterator[Piece]:
    yield Piece("<|start_header_id|>", Kind.CONTROL, index)
    yield Piece(speaker, Kind.TEXT, index)
    yield Piece("<|end_header_id|>", Kind.CONTROL, index)
    yield Piece("\n\n", Kind.TEXT, index)


def _turn(speaker: str, index: int, text: str) -> Iterator[Piece]:
    yield from _header(speaker, index)
    yield Piece(text, Kind.TEXT, index, is_output=True)
    yield Piece("<|eot_id|>", Kind.CONTROL, index, is_output=True)


def _declarations(tools: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{_declaration(tool, index)}\n\n" for index, tool in enumerate(tools))


def _declaration(tool: Mapping[str, Any], index: int) -> str:
    try:
        return json.dumps(tool, ensure_ascii=False, indent=4)
    except (TypeError, ValueError) as error:
        raise RenderError(f"tools[{index}]: not JSON: {error}") from error


def _call(call: ToolCall) -> str:
    return f'{{"name": "{call.name}", "parameters": {_json(json.loads(call.arguments))}}}'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _refuse_thinking_and_images(name: str, messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        refuse_images(name, index, message)
        if message.thinking:
            raise RenderError(f"message {index}: reasoning_content: {name} has no thinking")
