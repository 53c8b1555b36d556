"""DeepSeek-V3 (first release) and DeepSeek-R1.

<｜begin▁of▁sentence｜>SYSTEM<｜User｜>CONTENT<｜Assistant｜>CONTENT<｜end▁of▁sentence｜>
                                                          (trained: CONTENT<｜end▁of▁sentence｜>)

All system messages stand at the front, a blank line between them, also one that comes later: it changes the ids of the
turns before it. Tools are called, and answer, like this (¶ is a newline):

<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME¶```json¶ARGUMENTS¶```<｜tool▁call▁end｜>¶
<｜tool▁call▁begin｜>...<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>
<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>RESULT<｜tool▁output▁end｜><｜tool▁outputs▁end｜>CONTENT<｜end▁of▁sentence｜>

Both templates open the sections of calls and of results once a conversation only: later calls follow a newline, with
neither a header nor the opening token. The first release has a newline between results, closes a section after every
call but the first, so one with a single call not at all, and drops either the text or the calls of a message with both.
Calls that are not written as a model can write them are not trained where they stand; ``build_supervised_examples``
shows each in a whole section after its prompt. Without calls and late system messages, a conversation of V3 begins
with the prompts of its own turns.

R1's prompt ends in ``<think>`` and a newline, but its history has no think block, so a conversation never begins with
the prompts of its own turns:

- ``build_supervised_example`` is the template's whole conversation, and trains the answers as they stand there. The
  reasoning of the current turn would be lost, and is refused.
- ``build_supervised_examples`` trains each answer after the very prompt it is sampled from:
  ``...<｜Assistant｜><think>¶`` and then ``REASONING¶</think>¶¶CONTENT<｜end▁of▁sentence｜>``, as the model writes it.
  Straight after a tool's result the prompt opens no think block; there the last answer's reasoning is refused.

A history string that opens with ``<think>`` loses all up to its last ``</think>``, as the template has it. A string
with a ``</think>`` only, which the template would cut as well, is kept whole: it is what was said.

Sources: the chat template of DeepSeek-V3's first release, and the one that TRL keeps as ``deepseekv3``. No template
declares tools.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from crucible_train.errors import RenderError
from crucible_train.renderers.answers import AnswerReader, Delta, Section, Words
from crucible_train.renderers.base import Renderer, Tools
from crucible_train.renderers.checks import (
    check_calls,
    is_json_object,
    refuse_images,
    refuse_lost_reasoning,
    refuse_unknown_roles,
)
from crucible_train.renderers.pieces import BREAK, Kind, Piece
from crucible_train.types import Message, ToolCall

BEGIN = Piece("<｜begin▁of▁sentence｜>", Kind.CONTROL)
END = "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUTS_BEGIN, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT_BEGIN, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
THINK, END_THINK = "<think>", "</think>"
_CALL_TYPE, _CODE, _END_CODE = "function", "\n```json\n", "\n```"


class DeepSeekReader(AnswerReader):
    """Calls between their tokens; the newlines between calls are the format's."""

    opens: ClassVar[Mapping[str, Section]] = {CALL_BEGIN: Section.CALL}
    closes: ClassVar[Mapping[str, Section]] = {CALL_END: Section.CALL}
    passed_over = frozenset({CALLS_BEGIN, CALLS_END})
    _is_after_call = False

    def read_call(self, stretches: Sequence[tuple[str, bool]]) -> ToolCall | None:
        """``function``, the separator, the name, and the arguments as a block of code."""
        match stretches:
            case [(kind, False), (sep, True), (call, False)] if kind == _CALL_TYPE and sep == SEP:
                # valid JSON has no newline within a string, so the last one that fits opens the block
                name, _, code = call.rpartition(_CODE)
                arguments = code.removesuffix(_END_CODE)
                if name and arguments != code and is_json_object(arguments):
                    return ToolCall(name, arguments)
        return None

    def control(self, name: str) -> Iterator[Delta]:
        """Note where a call ends."""
        self._is_after_call = self.section is Section.CALL and name in self.closes
        yield from super().control(name)

    def text(self, text: str) -> Iterator[Delta]:
        """Pass over newlines that follow a call."""
        if self._is_after_call:
            text = text.lstrip("\n")
            self._is_after_call = not text
        if text:
            yield from super().text(text)


class _R1Reader(DeepSeekReader):
    """Begins in reasoning, which the prompt opens; a newline before its end and a blank line after it are no text."""

    starts_in = Section.THINKING
    opens: ClassVar[Mapping[str, Section]] = {**DeepSeekReader.opens, THINK: Section.THINKING}
    closes: ClassVar[Mapping[str, Section]] = {**DeepSeekReader.closes, END_THINK: Section.THINKING}

    def __init__(self) -> None:
        super().__init__()
        self._thinking = Words("", "", "\n")
        self._gap = ""

    def control(self, name: str) -> Iterator[Delta]:
        self._gap = "\n\n" if self.section is Section.THINKING and name == END_THINK else ""
        yield from super().control(name)

    def text(self, text: str) -> Iterator[Delta]:
        while self._gap and text:
            self._gap = self._gap[1:] if text[0] == self._gap[0] else ""
            text = text[1:] if text[0] == "\n" else text
        yield from super().text(text)


class DeepSeek(Renderer):
    """What the formats of DeepSeek share."""

    stop_tokens = (END,)
    reader: ClassVar[type[AnswerReader]] = DeepSeekReader
    verbatim = (END_THINK,)
    extends_history = False  # a later system message moves to the front
    last_block: ClassVar[bool] = False
    """Whether a think block that opens a history string ends with the last ``</think>`` in it, not the first."""

    def extends(self, messages: Sequence[Message]) -> bool:
        """Unless a system message follows an answer."""
        roles = [message.role for message in messages]
        return "assistant" not in roles or "system" not in roles[roles.index("assistant") :]

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse tool declarations, images, roles without a place, calls that are none, and reasoning that is lost."""
        if tools:
            raise RenderError(f"tools: {self.name} declares none, but {len(tools)} are given; tell them in a message")
        refuse_unknown_roles(self.name, messages, ("system", "user", "assistant", "tool"))
        check_calls(messages)
        for index, message in enumerate(messages):
            refuse_images(self.name, index, message)
        refuse_lost_reasoning(self.name, messages, self.kept_reasoning(messages))

    def kept_reasoning(self, messages: Sequence[Message]) -> Collection[int]:
        """The messages of the current turn whose reasoning an example can hold."""
        return ()

    def opens_thinking(self, messages: Sequence[Message]) -> bool:
        """Whether the prompt after these messages opens a think block."""
        return False

    @abstractmethod
    def open_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The pieces of a prompt, whatever is left out of its history."""

    @abstractmethod
    def written_pieces(self, messages: Sequence[Message]) -> Iterable[Piece]:
        """What the model writes of the last message after its prompt."""

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The conversation and an open header; no prompt shows reasoning."""
        refuse_lost_reasoning(self.name, messages)
        if role not in {"user", "assistant"}:
            raise RenderError(f"role: {self.name} has no header for {role!r}; known are user and assistant")
        return self.open_pieces(messages, tools, role)

    def turn_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """An answer after its prompt; anyone else's words as the conversation has them."""
        *before, last = messages
        if last.role != "assistant":
            return self.conversation_pieces(messages, tools)
        return [*self.open_pieces(before, tools, "assistant"), BREAK, *self.written_pieces(messages)]

    def reader_after(self, messages: Sequence[Message]) -> AnswerReader:
        """One that begins in text where the prompt after these messages opens no think block."""
        reader = self.reader()
        if messages and not self.opens_thinking(messages):
            reader.section = Section.TEXT
        return reader

    def without_block(self, message: Message, before: str | None) -> tuple[str, str]:
        """The think block that opens a message's text, or nothing, and the rest; ``before`` is who spoke before."""
        text = message.text
        if message.tool_calls or before == "tool" or not text.startswith(THINK) or END_THINK not in text:
            return "", text
        block = text.removeprefix(THINK)
        thinking, _, text = block.rpartition(END_THINK) if self.last_block else block.partition(END_THINK)
        return thinking, text


class DeepSeekV3(DeepSeek):
    """The format of DeepSeek-V3's first release."""

    name = "deepseekv3"
    between_results: ClassVar[str] = "\n"

    def extends(self, messages: Sequence[Message]) -> bool:
        """Unless there are calls, which history has otherwise than a model writes them, or a late system message."""
        return super().extends(messages) and not any(message.tool_calls for message in messages)

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse also the calls that text stands beside."""
        super().check(messages, tools)
        self.check_text_beside_calls(messages)

    def check_text_beside_calls(self, messages: Sequence[Message]) -> None:
        """The template drops the calls of a message with text."""
        for index, message in enumerate(messages):
            if message.tool_calls and message.text:
                raise RenderError(f"message {index}: tool_calls: {self.name} has none beside text")

    def closing_calls(self, num: int, *, has_called: bool) -> Collection[int]:
        """After which of ``num`` calls the template closes the section, if the conversation opened it before or not."""
        return range(0 if has_called else 1, num)

    def text_in_history(self, message: Message, before: str | None) -> str:
        """What of a message's text history keeps."""
        return message.text

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The template's text; a result that comes last closes the section of results."""
        yield BEGIN
        yield from system_pieces(messages)
        has_called = has_result = False
        before = None
        for index, message in enumerate(messages):
            match message.role:
                case "user":
                    yield Piece(USER, Kind.CONTROL, index)
                    yield Piece(message.text, Kind.TEXT, index, is_output=True)
                case "tool":
                    first, then = Piece(OUTPUTS_BEGIN, Kind.CONTROL, index), Piece(self.between_results, message=index)
                    yield then if has_result else first
                    yield from result_pieces(message, index)
                    has_result = True
                case "assistant" if message.tool_calls:
                    yield from self._calls_in_history(message, index, has_called=has_called)
                    has_called = True
                case "assistant":
                    yield Piece(OUTPUTS_END if before == "tool" else ASSISTANT, Kind.CONTROL, index)
                    yield Piece(self.text_in_history(message, before), Kind.TEXT, index, is_output=True)
                    yield Piece(END, Kind.CONTROL, index, is_output=True)
            before = before if message.role == "system" else message.role
        if before == "tool":
            yield Piece(OUTPUTS_END, Kind.CONTROL)

    def open_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """A header, which there is none of after a result."""
        yield from self.conversation_pieces(messages, tools)
        if role == "user":
            yield Piece(USER, Kind.CONTROL)
        elif last_speaker(messages) != "tool":
            yield Piece(ASSISTANT, Kind.CONTROL)
            if self.opens_thinking(messages):
                yield Piece(THINK, Kind.CONTROL)
                yield Piece("\n")

    def written_pieces(self, messages: Sequence[Message]) -> Iterable[Piece]:
        """The text, and all calls in one section."""
        index, message = len(messages) - 1, messages[-1]
        yield Piece(message.text, Kind.TEXT, index, is_output=True)
        yield from self._calls(message, index, opens=True, closing={len(message.tool_calls) - 1}, is_output=True)
        if not message.tool_calls:
            yield Piece(END, Kind.CONTROL, index, is_output=True)

    def _calls_in_history(self, message: Message, index: int, *, has_called: bool) -> Iterable[Piece]:
        num = len(message.tool_calls)
        closing = self.closing_calls(num, has_called=has_called)
        is_output = not has_called and list(closing) == [num - 1]
        if has_called:
            yield Piece("\n", Kind.TEXT, index)
        else:
            yield Piece(ASSISTANT, Kind.CONTROL, index)
            yield Piece(message.text, Kind.TEXT, index, is_output)
        yield from self._calls(message, index, opens=not has_called, closing=closing, is_output=is_output)

    def _calls(
        self, message: Message, index: int, *, opens: bool, closing: Collection[int], is_output: bool
    ) -> Iterable[Piece]:
        if message.tool_calls and opens:
            yield Piece(CALLS_BEGIN, Kind.CONTROL, index, is_output)
        for number, call in enumerate(message.tool_calls):
            if number > 0:
                yield Piece("\n", Kind.TEXT, index, is_output)
            yield Piece(CALL_BEGIN, Kind.CONTROL, index, is_output)
            yield Piece(_CALL_TYPE, Kind.TEXT, index, is_output)
            yield Piece(SEP, Kind.CONTROL, index, is_output)
            yield Piece(f"{call.name}{_CODE}{call.arguments}{_END_CODE}", Kind.TEXT, index, is_output)
            yield Piece(CALL_END, Kind.CONTROL, index, is_output)
            if number in closing:
                yield Piece(CALLS_END, Kind.CONTROL, index, is_output)
                yield Piece(END, Kind.CONTROL, index, is_output)


class DeepSeekR1(DeepSeekV3):
    """The format of DeepSeek-R1."""

    name = "deepseek_r1"
    reader = _R1Reader
    between_results = ""
    last_block = True

    def extends(self, messages: Sequence[Message]) -> bool:
        """No: history has no think block."""
        return False

    def check_whole(self, messages: Sequence[Message]) -> None:
        """Refuse the reasoning of the current turn, which the template's conversation does not show."""
        refuse_lost_reasoning(self.name, messages)

    def check_text_beside_calls(self, messages: Sequence[Message]) -> None:
        """The template drops the text beside calls once the section of calls is open."""
        has_called = False
        for index, message in enumerate(messages):
            if message.tool_calls and message.text and has_called:
                raise RenderError(f"message {index}: content: {self.name} has none beside the calls of a later message")
            has_called = has_called or bool(message.tool_calls)

    def kept_reasoning(self, messages: Sequence[Message]) -> Collection[int]:
        """That of the last message, where its prompt opens a think block."""
        *before, last = messages
        return {len(before)} if last.role == "assistant" and self.opens_thinking(before) else ()

    def opens_thinking(self, messages: Sequence[Message]) -> bool:
        """Wherever there is a header."""
        return last_speaker(messages) != "tool"

    def closing_calls(self, num: int, *, has_called: bool) -> Collection[int]:
        """Once, after the last."""
        return {num - 1}

    def text_in_history(self, message: Message, before: str | None) -> str:
        """All but a think block."""
        return self.without_block(message, before)[1]

    def written_pieces(self, messages: Sequence[Message]) -> Iterable[Piece]:
        """The reasoning, where the prompt opened it, and then as V3."""
        *before, last = messages
        if self.opens_thinking(before):
            block, text = self.without_block(last, last_speaker(before))
            thinking = last.thinking or block.removeprefix("\n").removesuffix("\n")
            last = replace(last, content=text.removeprefix("\n\n") if block else text)
            yield Piece(f"{thinking}\n", Kind.TEXT, len(before), is_output=True)
            yield Piece(END_THINK, Kind.CONTROL, len(before), is_output=True)
            yield Piece("\n\n", Kind.TEXT, len(before), is_output=True)
        yield from super().written_pieces((*before, last))


def system_pieces(messages: Sequence[Message]) -> Iterable[Piece]:
    """All system messages, a blank line between them."""
    is_first = True
    for index, message in enumerate(messages):
        if message.role == "system":
            if not is_first:
                yield Piece("\n\n", Kind.TEXT, index)
            yield Piece(message.text, Kind.TEXT, index, is_output=True)
            is_first = False


def result_pieces(message: Message, index: int) -> Iterable[Piece]:
    """What a tool gave."""
    yield Piece(OUTPUT_BEGIN, Kind.CONTROL, index)
    yield Piece(message.text, Kind.TEXT, index, is_output=True)
    yield Piece(OUTPUT_END, Kind.CONTROL, index, is_output=True)


def last_speaker(messages: Sequence[Message]) -> str | None:
    """Who spoke last; system messages stand at the front, wherever they come."""
    return next((message.role for message in reversed(messages) if message.role != "system"), None)
