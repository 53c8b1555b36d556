"""DeepSeek-V3.1, without thinking and with it.

<｜begin▁of▁sentence｜>SYSTEM<｜User｜>CONTENT<｜Assistant｜></think>CONTENT<｜end▁of▁sentence｜>
                                                                  (trained: CONTENT<｜end▁of▁sentence｜>)

Only an answer to a user has a header; what follows a tool's result or another answer goes on without one. All system
messages stand at the front, a blank line between them, also one that comes later: it changes the ids of the turns
before it. But for that, without thinking, a conversation begins with the prompts of its own turns. Calls and results:

...</think>CONTENT<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>
<｜tool▁call▁begin｜>...<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>
<｜tool▁output▁begin｜>RESULT<｜tool▁output▁end｜>CONTENT<｜end▁of▁sentence｜>       (all of it on one line)

With thinking, the prompt ends in ``<think>`` where there is a header. The template never shows reasoning: history has
``</think>`` alone, so no conversation with two answers begins with the prompts of both. What is trained is what the
model is documented to write after its prompt; so a conversation that ends with an answer to a user ends like this:

...<｜Assistant｜><think>REASONING</think>CONTENT<｜end▁of▁sentence｜>
                         (trained: REASONING</think>CONTENT<｜end▁of▁sentence｜>; no reasoning gives </think> at once)

The same holds for an answer that calls tools, but there reasoning is refused, as it is straight after a tool's result:
the model calls tools without thinking, and the next prompt of the same turn would drop it.

A history string that opens with ``<think>`` loses all up to its first ``</think>``, as the template has it; where it is
trained with thinking, that is its reasoning. A string with a ``</think>`` only, which the template would cut as well,
is kept whole: it is what was said.

Source: the published chat template, whose ``prefix`` key is not used. It declares no tools.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar

from crucible_train.renderers.answers import Section
from crucible_train.renderers.base import Tools
from crucible_train.renderers.checks import is_json_object
from crucible_train.renderers.deepseek import (
    ASSISTANT,
    BEGIN,
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    END,
    END_THINK,
    SEP,
    THINK,
    USER,
    DeepSeek,
    DeepSeekReader,
    last_speaker,
    result_pieces,
    system_pieces,
)
from crucible_train.renderers.pieces import Kind, Piece
from crucible_train.types import Message, ToolCall


class _Reader(DeepSeekReader):
    """A call is its name, the separator and the arguments."""

    def read_call(self, stretches: Sequence[tuple[str, bool]]) -> ToolCall | None:
        match stretches:
            case [(name, False), (sep, True), (arguments, False)] if sep == SEP and is_json_object(arguments):
                return ToolCall(name, arguments)
        return None


class _ThinkingReader(_Reader):
    """Begins in reasoning, which the prompt opens."""

    starts_in = Section.THINKING
    opens: ClassVar[Mapping[str, Section]] = {**_Reader.opens, THINK: Section.THINKING}
    closes: ClassVar[Mapping[str, Section]] = {**_Reader.closes, END_THINK: Section.THINKING}


class DeepSeekV31(DeepSeek):
    """The format of DeepSeek-V3.1 without thinking."""

    name = "deepseekv3_1"
    reader = _Reader

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The template's text."""
        yield BEGIN
        yield from system_pieces(messages)
        before = None
        for index, message in enumerate(messages):
            match message.role:
                case "user":
                    yield Piece(USER, Kind.CONTROL, index)
                    yield Piece(message.text, Kind.TEXT, index, is_output=True)
                case "tool":
                    yield from result_pieces(message, index)
                case "assistant":
                    if before == "user":
                        yield Piece(ASSISTANT, Kind.CONTROL, index)
                        yield Piece(END_THINK, Kind.CONTROL, index)
                    yield from _said(self.without_block(message, before)[1], message, index)
            before = before if message.role == "system" else message.role

    def open_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """A header after a user's words, and none after others."""
        yield from DeepSeekV31.conversation_pieces(self, messages, tools)
        if role == "user":
            yield Piece(USER, Kind.CONTROL)
        elif last_speaker(messages) == "user":
            yield Piece(ASSISTANT, Kind.CONTROL)
            yield Piece(THINK if self.opens_thinking(messages) else END_THINK, Kind.CONTROL)

    def written_pieces(self, messages: Sequence[Message]) -> Iterable[Piece]:
        """Reasoning and its end where the prompt opened a think block, text, calls."""
        *before, last = messages
        block, text = self.without_block(last, last_speaker(before))
        if self.opens_thinking(before):
            yield Piece(last.thinking or block, Kind.TEXT, len(before), is_output=True)
            yield Piece(END_THINK, Kind.CONTROL, len(before), is_output=True)
        yield from _said(text, last, len(before))


class DeepSeekV31Thinking(DeepSeekV31):
    """The format of DeepSeek-V3.1 with thinking."""

    name = "deepseekv3_1_thinking"
    reader = _ThinkingReader

    def extends(self, messages: Sequence[Message]) -> bool:
        """No: what is trained stands otherwise in history."""
        return False

    def opens_thinking(self, messages: Sequence[Message]) -> bool:
        """Wherever there is a header."""
        return last_speaker(messages) == "user"

    def kept_reasoning(self, messages: Sequence[Message]) -> Collection[int]:
        """That of a last message that answers a user and calls no tool."""
        *before, last = messages
        is_kept = last.role == "assistant" and not last.tool_calls and self.opens_thinking(before)
        return {len(before)} if is_kept else ()

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The template's text, but for a last message that answers a user."""
        if messages[-1].role == "assistant" and self.opens_thinking(messages[:-1]):
            return self.turn_pieces(messages, tools)
        return super().conversation_pieces(messages, tools)


def _said(text: str, message: Message, index: int) -> Iterable[Piece]:
    yield Piece(text, Kind.TEXT, index, is_output=True)
    if message.tool_calls:
        yield Piece(CALLS_BEGIN, Kind.CONTROL, index, is_output=True)
        for call in message.tool_calls:
            yield Piece(CALL_BEGIN, Kind.CONTROL, index, is_output=True)
            yield Piece(call.name, Kind.TEXT, index, is_output=True)
            yield Piece(SEP, Kind.CONTROL, index, is_output=True)
            yield Piece(call.arguments, Kind.TEXT, index, is_output=True)
            yield Piece(CALL_END, Kind.CONTROL, index, is_output=True)
        yield Piece(CALLS_END, Kind.CONTROL, index, is_output=True)
    yield Piece(END, Kind.CONTROL, index, is_output=True)
