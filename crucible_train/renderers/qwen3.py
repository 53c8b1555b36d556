"""Qwen3: ChatML with tools, and in the hybrid models reasoning that the template takes out of earlier turns.

<|im_start|>system¶CONTENT¶¶# Tools ... <|im_end|>¶                             (where there is either)
<|im_start|>user¶CONTENT<|im_end|>¶
<|im_start|>assistant¶<think>¶REASONING¶</think>¶¶CONTENT¶CALLS<|im_end|>¶      (trained: what follows the header's ¶)
<|im_start|>user¶<tool_response>¶RESULT¶</tool_response>¶<tool_response>¶RESULT¶</tool_response><|im_end|>¶

A call is ``<tool_call>¶{"name": "NAME", "arguments": ARGUMENTS}¶</tool_call>``, with a newline between two of them. The
assistant's last message always has the block of reasoning, if need be an empty one; one that leads to a tool's result
has it where there is reasoning; what came before the last user's message has none. The layouts are those of the
published templates of Qwen3 (current revision) and of Qwen3-Instruct-2507.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from crucible_train.errors import RenderError
from crucible_train.ports import Tokenizer
from crucible_train.renderers.answers import AnswerReader, Delta, Section
from crucible_train.renderers.base import Renderer, Tools
from crucible_train.renderers.checks import (
    check_calls,
    is_json_object,
    refuse_images,
    refuse_lost_reasoning,
    refuse_unknown_roles,
)
from crucible_train.renderers.pieces import BREAK, NO_MESSAGE, Kind, Piece
from crucible_train.types import Message, ToolCall

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
_ROLES = ("system", "user", "assistant", "tool")
_SPEAKERS = ("assistant", "user", "system")
_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
_CALL_EXAMPLE = '\n{"name": <function-name>, "arguments": <args-json-object>}\n'
_WRITTEN_CALL = re.compile(r'\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": (.*)\}\s*', re.DOTALL)


class CallReader(AnswerReader):
    """Reads text and tool calls."""

    opens: ClassVar[Mapping[str, Section]] = {CALL: Section.CALL}
    closes: ClassVar[Mapping[str, Section]] = {END_CALL: Section.CALL}
    call_prefix = "\n"

    def read_call(self, stretches: Sequence[tuple[str, bool]]) -> ToolCall | None:
        """A JSON object with a name and an object of arguments, whose text is kept as it is written."""
        text = "".join(stretch for stretch, _ in stretches)
        if (written := _WRITTEN_CALL.fullmatch(text)) and is_json_object(written[2]):
            name, arguments = _json(written[1]), written[2]
        else:
            call = _json(text)
            name, arguments = (call.get("name"), call.get("arguments")) if isinstance(call, dict) else (None, None)
            arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        is_call = isinstance(name, str) and is_json_object(arguments)
        return ToolCall(name, arguments) if is_call and _is_unicode(name) and _is_unicode(arguments) else None


class ThinkingReader(CallReader):
    """Reads reasoning as well. Only its own end ends it: a call's marker within it is a word like any other."""

    opens: ClassVar[Mapping[str, Section]] = {THINK: Section.THINKING, **CallReader.opens}
    closes: ClassVar[Mapping[str, Section]] = {END_THINK: Section.THINKING, **CallReader.closes}
    thinking_strip = "\n"
    text_lstrip = "\n"

    def control(self, name: str) -> Iterator[Delta]:
        """Take a control token that is not a stop."""
        if self.section is Section.THINKING and name not in {THINK, END_THINK}:
            yield from self.text(name)
        else:
            yield from super().control(name)


class Qwen3Instruct(Renderer):
    """The format of Qwen3-Instruct-2507, which has no reasoning.

    That of earlier turns is left out, as the template does; in the current turn it is refused. Each conversation's ids
    begin with those of its prompts, but where content that opens with a newline shares a token with its header.
    """

    name = "qwen3_instruct"
    stop_tokens = ("<|im_end|>",)
    reader = CallReader
    verbatim: ClassVar[Sequence[str] | None] = ()
    picture_roles: ClassVar[frozenset[str]] = frozenset()
    """Whose messages may hold pictures."""
    has_later_systems: ClassVar[bool] = True
    """Whether a system message may stand elsewhere than at the beginning."""

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """System and tools, then every message; results that follow each other share a turn."""
        yield from self._opening(messages, tools)
        for index, message in enumerate(messages):
            if message.role == "tool":
                yield from self._result(index, messages)
            elif index or message.role != "system":
                yield from _header(index, message.role)
                if message.role == "assistant":
                    yield from self.answer_pieces(index, messages)
                else:
                    yield from self.content_pieces(index, message)
                    yield from _end(index)

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The conversation and an open header.

        Raises:
            RenderError: the role is none that a header is written for.
        """
        if role not in _SPEAKERS:
            raise RenderError(f"role: {self.name} can prompt {', '.join(_SPEAKERS)}, not {role!r}")
        yield from self.conversation_pieces(messages, tools)
        yield from _header(NO_MESSAGE, role)

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse what would be lost: other roles, calls and reasoning of others than the assistant, pictures."""
        refuse_unknown_roles(self.name, messages, _ROLES)
        check_calls(messages)
        for number, tool in enumerate(tools or ()):
            _declaration(number, tool)
        for index, message in enumerate(messages):
            self._check_pictures(index, message)
            if index and message.role == "system" and not self.has_later_systems:
                raise RenderError(f"message {index}: role: in {self.name} a system message can only be the first")
        self.check_reasoning(messages)

    def check_reasoning(self, messages: Sequence[Message]) -> None:
        """Refuse reasoning that would be lost though it belongs to the current turn."""
        refuse_lost_reasoning(self.name, messages)

    def content_pieces(self, index: int, message: Message) -> Iterable[Piece]:
        """What anyone but the assistant says."""
        yield Piece(message.text, Kind.TEXT, index, True)

    def answer_pieces(self, index: int, messages: Sequence[Message]) -> Iterable[Piece]:
        """What the assistant writes in message ``index``, and the end of its turn."""
        yield from self.words_and_calls(index, messages[index], messages[index].text)

    def words_and_calls(self, index: int, message: Message, text: str) -> Iterable[Piece]:
        """The words of an answer, its calls, and the end of its turn."""
        yield Piece(text, Kind.TEXT, index, True)
        needs_newline = self.has_words(message)
        for call in message.tool_calls:
            if needs_newline:
                yield Piece("\n", Kind.TEXT, index, True)
            needs_newline = True
            yield Piece(CALL, Kind.CONTROL, index, True)
            name = json.dumps(call.name, ensure_ascii=False)
            yield Piece(f'\n{{"name": {name}, "arguments": {call.arguments}}}\n', Kind.TEXT, index, True)
            yield Piece(END_CALL, Kind.CONTROL, index, True)
        yield from _end(index)

    def has_words(self, message: Message) -> bool:
        """Whether a newline stands before the first call."""
        return bool(message.text)

    def _opening(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        has_system = bool(messages) and messages[0].role == "system"
        if not has_system and not tools:
            return
        index = 0 if has_system else NO_MESSAGE
        yield from _header(index, "system")
        if has_system:
            yield from self.content_pieces(0, messages[0])
        if tools:
            declared = "".join(f"\n{_declaration(number, tool)}" for number, tool in enumerate(tools))
            before = f"\n\n{_TOOLS_BEFORE}" if has_system else _TOOLS_BEFORE
            yield Piece(f"{before}{declared}{_TOOLS_AFTER}", Kind.TEXT, index, has_system)
            yield Piece(CALL, Kind.CONTROL, index, has_system)
            yield Piece(END_CALL, Kind.CONTROL, index, has_system)
            yield Piece(" XML tags:\n", Kind.TEXT, index, has_system)
            yield Piece(CALL, Kind.CONTROL, index, has_system)
            yield Piece(_CALL_EXAMPLE, Kind.TEXT, index, has_system)
            yield Piece(END_CALL, Kind.CONTROL, index, has_system)
        yield from _end(index, is_output=has_system)

    def _result(self, index: int, messages: Sequence[Message]) -> Iterable[Piece]:
        if index == 0 or messages[index - 1].role != "tool":
            yield Piece("<|im_start|>", Kind.CONTROL, index)
            yield Piece("user", Kind.TEXT, index)
        yield Piece("\n", Kind.TEXT, index)
        yield Piece("<tool_response>", Kind.CONTROL, index)
        yield Piece("\n", Kind.TEXT, index)
        yield from self.content_pieces(index, messages[index])
        yield Piece("\n", Kind.TEXT, index, True)
        yield Piece("</tool_response>", Kind.CONTROL, index, True)
        if index + 1 == len(messages) or messages[index + 1].role != "tool":
            yield from _end(index)

    def _check_pictures(self, index: int, message: Message) -> None:
        if not self.picture_roles:
            refuse_images(self.name, index, message)
        elif message.role not in self.picture_roles:
            refuse_images(f"a message of the {message.role} in {self.name}", index, message)


class Qwen3(Qwen3Instruct):
    """The format of the hybrid Qwen3 models, which reason before they answer.

    Content that opens with ``<think>`` and has an end of it is reasoning and answer, as the template reads it. Other
    mentions of such markers, and all that others say, are words. A conversation's ids do not begin with those of its
    own prompts, since earlier reasoning is taken out; with ``strip_thinking_from_history=False`` they do.

    Args:
        tokenizer: the model's tokenizer.
        strip_thinking_from_history: take reasoning out of what came before the last user's message, as the template
            does. Otherwise every answer stays as it was written, with its block of reasoning.
    """

    name = "qwen3"
    reader = ThinkingReader
    verbatim = (END_THINK,)
    num_prompted: ClassVar[int] = 0
    """How many pieces of the block of reasoning the prompt writes."""

    def __init__(self, tokenizer: Tokenizer, *, strip_thinking_from_history: bool = True) -> None:
        """Bind the format to a tokenizer."""
        super().__init__(tokenizer)
        self._strips = strip_thinking_from_history

    @property
    def options(self) -> Mapping[str, Any]:
        """Whether earlier reasoning is taken out."""
        return {"strip_thinking_from_history": self._strips}

    @property
    def extends_history(self) -> bool:  # type: ignore[override]
        """Only where answers stay as they were written."""
        return not self._strips

    def extends(self, messages: Sequence[Message]) -> bool:
        """Also where history shows every answer as the model wrote it: in one turn whose every step has reasoning."""
        answers = (index for index, message in enumerate(messages) if message.role == "assistant")
        return self.extends_history or (
            not self.num_prompted
            and all(self._shows_block(index, messages, _said(messages[index])[0]) for index in answers)
        )

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The conversation, an open header, and what the prompt itself writes of the reasoning."""
        yield from super().prompt_pieces(messages, tools, role)
        if role == "assistant":
            yield from self._block(NO_MESSAGE, "")[: self.num_prompted]

    def turn_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The last answer after its own prompt, to the letter: the template's history may show it otherwise."""
        index = len(messages) - 1
        if self.extends_history or messages[index].role != "assistant":
            yield from self.conversation_pieces(messages, tools)
            return
        reasoning, text = _said(messages[index])
        yield from self.prompt_pieces(messages[:index], tools, "assistant")
        yield BREAK
        if self.num_prompted or reasoning or _is_query_before(index, messages):
            yield from self._block(index, reasoning)[self.num_prompted :]
            text = text.lstrip("\n")
        yield from self.words_and_calls(index, messages[index], text)

    def check_reasoning(self, messages: Sequence[Message]) -> None:
        """Refuse that of others than the assistant, and what no example can hold."""
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        refuse_lost_reasoning(self.name, messages, kept=answers)
        if self._strips and not _is_query_before(len(messages), messages):
            self._refuse_reasoning(answers, messages, "writes it only where there is a user's message")

    def _refuse_reasoning(self, answers: Iterable[int], messages: Sequence[Message], why: str) -> None:
        for index in answers:
            if _said(messages[index])[0].strip():
                raise RenderError(f"message {index}: reasoning_content: {self.name} {why}")

    def answer_pieces(self, index: int, messages: Sequence[Message]) -> Iterable[Piece]:
        """Reasoning where it is shown, words and calls, and the end of the turn."""
        message = messages[index]
        reasoning, text = _said(message)
        if self._shows_block(index, messages, reasoning):
            block = self._block(index, reasoning)
            yield from block[: self.num_prompted]
            if not self._strips:
                yield BREAK  # so that what a model wrote stays what it wrote
            yield from block[self.num_prompted :]
            text = text.lstrip("\n")
        yield from self.words_and_calls(index, message, text)

    def has_words(self, message: Message) -> bool:
        """Whether a newline stands before the first call."""
        return bool(_said(message)[1])

    def _shows_block(self, index: int, messages: Sequence[Message], reasoning: str) -> bool:
        if not self._strips:
            return True
        if _is_followed_by_query(index, messages) or not _is_query_before(index, messages):
            return False
        return bool(reasoning) or index == len(messages) - 1

    def _block(self, index: int, reasoning: str) -> list[Piece]:
        """The block of reasoning, in pieces of which a prompt may write the first ones."""
        return [
            Piece(text, Kind.CONTROL if text in {THINK, END_THINK} else Kind.TEXT, index, place >= self.num_prompted)
            for place, text in enumerate((THINK, "\n", reasoning.strip("\n") + "\n", END_THINK, "\n\n"))
        ]


class Qwen3DisableThinking(Qwen3):
    """The hybrid Qwen3 models with thinking off: the prompt ends with an empty block of reasoning.

    Reasoning in a last turn is shown, as the template does, but never trained: the model will answer after an empty
    block, and that is what ``build_supervised_examples`` has. Where history is kept as it was written, every answer has
    its empty block, and reasoning is refused.
    """

    name = "qwen3_disable_thinking"
    num_prompted = 5

    def check_reasoning(self, messages: Sequence[Message]) -> None:
        """Refuse also all of it where answers stay as they were written, after an empty block."""
        super().check_reasoning(messages)
        if not self._strips:
            answers = (index for index, message in enumerate(messages) if message.role == "assistant")
            self._refuse_reasoning(answers, messages, "writes none where history is kept")


def _header(index: int, role: str) -> Iterable[Piece]:
    yield Piece("<|im_start|>", Kind.CONTROL, index)
    yield Piece(f"{role}\n", Kind.TEXT, index)


def _end(index: int, *, is_output: bool = True) -> Iterable[Piece]:
    yield Piece("<|im_end|>", Kind.CONTROL, index, is_output)
    yield Piece("\n", Kind.TEXT, index)


def _said(message: Message) -> tuple[str, str]:
    """The reasoning and the words of an assistant's message; content may hold both, as the format writes them."""
    thinking, text = message.thinking, message.text
    if thinking is None and END_THINK in text and (opened := text.lstrip()).startswith(THINK):
        before, _, after = opened.removeprefix(THINK).partition(END_THINK)
        return before.strip("\n"), after.lstrip("\n")
    return thinking or "", text


def _is_followed_by_query(index: int, messages: Sequence[Message]) -> bool:
    return any(message.role == "user" for message in messages[index + 1 :])


def _is_query_before(index: int, messages: Sequence[Message]) -> bool:
    return any(message.role == "user" for message in messages[:index])


def _declaration(number: int, tool: Any) -> str:
    if not isinstance(tool, Mapping):
        raise RenderError(f"tools[{number}]: must be an object, not {type(tool).__name__}")
    try:
        return json.dumps(tool, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RenderError(f"tools[{number}]: cannot be written as JSON: {error}") from error


def _json(text: str) -> Any:
    """The value of a JSON text, or None where it is not one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_unicode(text: str) -> bool:
    """Whether a text can be encoded: a JSON escape can stand for half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
