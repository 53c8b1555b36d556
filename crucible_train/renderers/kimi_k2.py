"""Kimi K2: Instruct and Thinking.

<|im_system|>tool_declare<|im_middle|>TOOLS<|im_end|>
<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>
<|im_user|>user<|im_middle|>CONTENT<|im_end|>
<|im_assistant|>assistant<|im_middle|>CONTENT<|im_end|>        (all of it on one line; trained: CONTENT<|im_end|>)

The default system message stands where a conversation does not open with one; after it Instruct has a newline. Tools
are compact JSON with sorted keys. In place of ``user``, ``assistant``, ``system`` or ``tool`` stands the message's
name, if it has one; prompts open an answer without a name. A role that is none of them is written as a system's.
Calls and results:

CONTENT<|tool_calls_section_begin|><|tool_call_begin|>ID<|tool_call_argument_begin|>ARGUMENTS<|tool_call_end|>
<|tool_call_begin|>...<|tool_call_end|><|tool_calls_section_end|><|im_end|>
<|im_system|>NAME<|im_middle|>## Return of ID¶CONTENT<|im_end|>                           (¶ is a newline)

An id is ``functions.NAME:INDEX`` and is all that says which tool is called. A call without one is numbered, counting
all calls before it; a result without one answers the calls before it in their order.

Thinking writes ``<think>REASONING</think>`` before the content of an answer, all of it trained; the reasoning of the
last answer without calls, and of all before it, is left empty. The template counts an answer that closes the
conversation as such history; for training, where it is what the model writes, it keeps its reasoning. So prompts follow
the template; a conversation that ends with an answer has what is trained. Where there is reasoning in history,
conversations do not begin with the prompts of their turns; otherwise, and always for Instruct, they do.

Text in an answer that spells a think block is text here, as it is for the template, which cuts out nothing; in the
published tokenizer's hands it would become control tokens.

Sources: the chat templates of Kimi-K2-Instruct and Kimi-K2-Thinking, as reconstructed in the reference data.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from crucible_train.errors import RenderError
from crucible_train.renderers.answers import AnswerReader, Section
from crucible_train.renderers.base import Renderer, Tools
from crucible_train.renderers.checks import check_calls, is_json_object, refuse_images, refuse_lost_reasoning
from crucible_train.renderers.pieces import NO_MESSAGE, Kind, Piece
from crucible_train.types import Message, ToolCall

DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
MIDDLE, END = "<|im_middle|>", "<|im_end|>"
SYSTEM = "<|im_system|>"
HEADERS = {"user": "<|im_user|>", "assistant": "<|im_assistant|>"}
CALLS_BEGIN, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
THINK, END_THINK = "<think>", "</think>"
_NAMESPACE = "functions."


class _Reader(AnswerReader):
    """Calls between their tokens."""

    opens: ClassVar[Mapping[str, Section]] = {CALL_BEGIN: Section.CALL}
    closes: ClassVar[Mapping[str, Section]] = {CALL_END: Section.CALL}
    passed_over = frozenset({CALLS_BEGIN, CALLS_END})

    def read_call(self, stretches: Sequence[tuple[str, bool]]) -> ToolCall | None:
        """The id and the arguments."""
        match stretches:
            case [(call_id, False), (token, True), (arguments, False)] if token == ARGUMENTS:
                name = _called(call_id)
                if name and is_json_object(arguments):
                    return ToolCall(name, arguments, call_id)
        return None


class _ThinkingReader(_Reader):
    """Reasoning between its tokens, too."""

    opens: ClassVar[Mapping[str, Section]] = {**_Reader.opens, THINK: Section.THINKING}
    closes: ClassVar[Mapping[str, Section]] = {**_Reader.closes, END_THINK: Section.THINKING}


class KimiK2(Renderer):
    """The format of Kimi-K2-Instruct."""

    name = "kimi_k2"
    stop_tokens = (END,)
    reader: ClassVar[type[AnswerReader]] = _Reader
    verbatim = ()
    after_default_system: ClassVar[str] = "\n"

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse images, calls that are none or whose id does not name the tool, and reasoning that is lost."""
        check_calls(messages)
        for index, message in enumerate(messages):
            refuse_images(self.name, index, message)
        _with_ids(messages)
        _declarations(tools)
        self.check_reasoning(messages)

    def check_reasoning(self, messages: Sequence[Message]) -> None:
        """Refuse reasoning that no example holds."""
        refuse_lost_reasoning(self.name, messages)

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The template's text."""
        return self.message_pieces(messages, tools, len(messages))

    def message_pieces(self, messages: Sequence[Message], tools: Tools, num_history: int) -> Iterable[Piece]:
        """The pieces of all messages, of which the first ``num_history`` are without their reasoning."""
        if tools:
            yield from _header(SYSTEM, "tool_declare", NO_MESSAGE)
            yield Piece(_declarations(tools))
            yield Piece(END, Kind.CONTROL)
        if not messages or messages[0].role != "system":
            yield from _header(SYSTEM, "system", NO_MESSAGE)
            yield Piece(DEFAULT_SYSTEM)
            yield Piece(END, Kind.CONTROL)
            yield Piece(self.after_default_system)
        for index, message in enumerate(_with_ids(messages)):
            yield from _header(HEADERS.get(message.role, SYSTEM), message.name or message.role, index)
            if message.role == "tool":
                yield Piece(f"## Return of {message.tool_call_id}\n", Kind.TEXT, index)
            elif message.role == "assistant":
                yield from self.reasoning_pieces(message.thinking or "" if index >= num_history else "", index)
            yield Piece(message.text, Kind.TEXT, index, is_output=True)
            if message.tool_calls:
                yield from _calls(message, index)
            yield Piece(END, Kind.CONTROL, index, is_output=True)

    def reasoning_pieces(self, thinking: str, index: int) -> Iterable[Piece]:
        """What stands before the content of an answer."""
        return ()

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The conversation and an open header."""
        yield from self.message_pieces(messages, tools, len(messages))
        yield from _header(HEADERS.get(role, SYSTEM), role, NO_MESSAGE)


class KimiK2Thinking(KimiK2):
    """The format of Kimi-K2-Thinking."""

    name = "kimi_k2_thinking"
    reader = _ThinkingReader
    extends_history = False
    after_default_system = ""

    def extends(self, messages: Sequence[Message]) -> bool:
        """Where there is no reasoning that a later turn leaves out."""
        return not any(message.thinking for message in messages[: _num_history(_before_last(messages))])

    def check_reasoning(self, messages: Sequence[Message]) -> None:
        """Refuse what the current turn would lose as an example."""
        refuse_lost_reasoning(self.name, messages, _kept(messages, _num_history(_before_last(messages))))

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """What is trained if the last message is an answer, the template's text otherwise."""
        return self.message_pieces(messages, tools, _num_history(_before_last(messages)))

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The template's text and an open header."""
        num_history = _num_history(messages)
        refuse_lost_reasoning(self.name, messages, _kept(messages, num_history))
        yield from self.message_pieces(messages, tools, num_history)
        yield from _header(HEADERS.get(role, SYSTEM), role, NO_MESSAGE)

    def reasoning_pieces(self, thinking: str, index: int) -> Iterable[Piece]:
        """A think block, empty or not."""
        yield Piece(THINK, Kind.CONTROL, index, is_output=True)
        yield Piece(thinking, Kind.TEXT, index, is_output=True)
        yield Piece(END_THINK, Kind.CONTROL, index, is_output=True)


def _header(token: str, speaker: str, index: int) -> Iterable[Piece]:
    yield Piece(token, Kind.CONTROL, index)
    yield Piece(speaker, Kind.TEXT, index)
    yield Piece(MIDDLE, Kind.CONTROL, index)


def _calls(message: Message, index: int) -> Iterable[Piece]:
    yield Piece(CALLS_BEGIN, Kind.CONTROL, index, is_output=True)
    for call in message.tool_calls:
        yield Piece(CALL_BEGIN, Kind.CONTROL, index, is_output=True)
        yield Piece(call.id or "", Kind.TEXT, index, is_output=True)
        yield Piece(ARGUMENTS, Kind.CONTROL, index, is_output=True)
        yield Piece(call.arguments, Kind.TEXT, index, is_output=True)
        yield Piece(CALL_END, Kind.CONTROL, index, is_output=True)
    yield Piece(CALLS_END, Kind.CONTROL, index, is_output=True)


def _num_history(messages: Sequence[Message]) -> int:
    """How many messages there are up to the last answer that calls no tool."""
    answers = (i for i, message in enumerate(messages) if message.role == "assistant" and not message.tool_calls)
    return max(answers, default=-1) + 1


def _before_last(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages without a last one that is an answer."""
    return messages[:-1] if messages[-1].role == "assistant" else messages


def _kept(messages: Sequence[Message], num_history: int) -> Collection[int]:
    return {i for i, message in enumerate(messages) if i >= num_history and message.role == "assistant"}


def _declarations(tools: Tools) -> str:
    try:
        return json.dumps(tools or [], ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise RenderError(f"tools: not JSON: {error}") from error


def _called(call_id: str) -> str | None:
    """The name of the tool that an id calls."""
    name, _, number = call_id.removeprefix(_NAMESPACE).rpartition(":")
    return name if call_id.startswith(_NAMESPACE) and number.isascii() and number.isdigit() else None


def _with_ids(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with an id for every call and every result.

    Raises:
        RenderError: an id does not say which tool is called, or a result answers no call.
    """
    num_calls = 0
    waiting: list[str] = []
    called: list[str] = []
    result = []
    for index, message in enumerate(messages):
        if message.tool_calls:
            calls = []
            for number, call in enumerate(message.tool_calls):
                if call.id is not None and _called(call.id) != call.name:
                    raise RenderError(
                        f"message {index}: tool_calls[{number}].id: {call.id!r} does not name the tool, and the id "
                        f"is all that is written; give '{_NAMESPACE}{call.name}:NUMBER' or none, in results too"
                    )
                calls.append(replace(call, id=call.id or f"{_NAMESPACE}{call.name}:{num_calls}"))
                num_calls += 1
            message = replace(message, tool_calls=tuple(calls))
            waiting = called = [call.id or "" for call in calls]
        elif message.role == "tool":
            answered = message.tool_call_id or next(iter(waiting), None)
            if answered is None:
                raise RenderError(f"message {index}: tool_call_id: missing, and every call before it has its result")
            if answered not in called:
                raise RenderError(f"message {index}: tool_call_id: {answered!r}, but the calls before it have no ids")
            waiting = [call_id for call_id in waiting if call_id != answered]
            message = replace(message, tool_call_id=answered)
        result.append(message)
    return result
