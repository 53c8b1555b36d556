"""Reading an answer: the sampled ids of one turn become a message.

A reader takes the answer in stretches, text or the name of a control token, in whatever portions they come, and gives
deltas as it goes and the message at the end. Streaming and reading at once are the same code, so they agree. A control
token's name that the model spells out in ordinary ids is text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import ClassVar

from crucible_train.types import Message, TextPart, ThinkingPart, ToolCall


class Termination(StrEnum):
    """How an answer ended."""

    STOP_SEQUENCE = "stop_sequence"
    """With the stop that ends a turn in this format."""
    END_OF_TEXT = "end_of_text"
    """With the tokenizer's end of text, not the format's stop."""
    MALFORMED = "malformed"
    """With neither (cut off), or with markup that could not be read."""

    @property
    def is_clean(self) -> bool:
        """Whether the model ended the answer itself."""
        return self is not Termination.MALFORMED


@dataclass(slots=True)
class Ending:
    """How an answer ended, and by which control token, if by one."""

    termination: Termination = Termination.MALFORMED
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """An answer read back.

    ``unparsed_tool_calls`` keeps, as written, what looks like a call but cannot be read as one.
    """

    message: Message
    termination: Termination
    unparsed_tool_calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next words of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """The next words of the reasoning."""

    thinking: str


Delta = TextDelta | ThinkingDelta


class Section(Enum):
    """What the words at hand are."""

    TEXT = "text"
    THINKING = "thinking"
    CALL = "call"
    """Inside the markup of tool calls; kept as written until the call is whole."""


class Words:
    """Text that grows, less what its format puts round it.

    ``lstrip`` are characters passed over at the beginning. ``rstrip`` are characters passed over at the end, and
    ``suffix`` is a text taken away once at the end: both are held back until it is known whether more follows.
    """

    def __init__(self, lstrip: str, rstrip: str, suffix: str) -> None:
        """Begin with nothing."""
        self.text = ""
        self._lstrip, self._rstrip, self._suffix = lstrip, rstrip, suffix
        self._held = ""

    def add(self, text: str) -> str:
        """What may be shown now."""
        text = self._held + text
        if not self.text:
            text = text.lstrip(self._lstrip) if self._lstrip else text
        end = len(text.rstrip(self._rstrip)) if self._rstrip else len(text)
        while (
            end
            and self._suffix
            and any(text.endswith(self._suffix[:num], 0, end) for num in range(1, len(self._suffix) + 1))
        ):
            end -= 1
        self._held = text[end:]
        self.text += text[:end]
        return text[:end]

    def close(self, *, drops: bool) -> str:
        """The end: what was held back is dropped as the format's own, or it is text after all."""
        rest, self._held = self._held, ""
        if drops:
            rest = rest.rstrip(self._rstrip) if self._rstrip else rest.removesuffix(self._suffix)
        self.text += rest
        return rest


class AnswerReader:
    """Reads one answer.

    A family says with the class variables how its markup reads, and overrides ``read_call``; one whose markup is of
    another kind overrides ``control``.
    """

    starts_in: ClassVar[Section] = Section.TEXT
    """Where an answer begins: in thinking, where the prompt opens it."""
    opens: ClassVar[Mapping[str, Section]] = {}
    """Control token -> the section it opens. In that section the token is passed over."""
    closes: ClassVar[Mapping[str, Section]] = {}
    """Control token -> the section it ends; text follows. Elsewhere the token's name is text."""
    passed_over: ClassVar[frozenset[str]] = frozenset()
    """Control tokens that only group others, such as the one before all calls."""
    thinking_strip: ClassVar[str] = ""
    """Characters that the format puts round reasoning."""
    text_lstrip: ClassVar[str] = ""
    """Characters that the format puts before text that follows reasoning."""
    call_prefix: ClassVar[str] = ""
    """What the format puts between text and a call, once."""

    def __init__(self) -> None:
        """Begin an answer."""
        self.section = self.starts_in
        self.words = Words("", "", self.call_prefix)
        self._thinking: Words | None = None
        self._has_thought = False
        self.calls: list[ToolCall] = []
        self.unparsed: list[str] = []
        self.call: list[tuple[str, bool]] = []
        """The call at hand: stretches as written, and whether each is a control token."""
        self.is_malformed = False

    def read_call(self, stretches: Sequence[tuple[str, bool]]) -> ToolCall | None:
        """The call that is written in these stretches (text, is control), or None where they are not one."""
        return None

    def text(self, text: str) -> Iterator[Delta]:
        """Take ordinary text, in any portions."""
        match self.section:
            case Section.THINKING:
                if self._thinking is None:
                    self._thinking = Words(self.thinking_strip, self.thinking_strip, "")
                if shown := self._thinking.add(text):
                    yield ThinkingDelta(shown)
            case Section.TEXT:
                if shown := self.words.add(text):
                    yield TextDelta(shown)
            case Section.CALL:
                if self.call and not self.call[-1][1]:
                    text = self.call.pop()[0] + text
                self.call.append((text, False))

    def control(self, name: str) -> Iterator[Delta]:
        """Take a control token that is not a stop."""
        if name in self.closes and self.section is self.closes[name]:
            yield from self._leave(self.section)
        elif name in self.passed_over and self.section is not Section.CALL:
            yield from self._enter(Section.TEXT)
            yield from self._leave_text()
        elif name in self.opens and self.section is not Section.CALL:
            yield from self._enter(self.opens[name])
        elif self.section is Section.CALL:
            self.call.append((name, True))
        else:
            yield from self.text(name)

    def finish(self, ending: Ending) -> Iterator[Delta]:
        """The answer is over. What is open is closed; a call that is not whole is kept as it stands."""
        match self.section:
            case Section.CALL:
                self._keep_unparsed()
            case Section.THINKING:
                if self._thinking is not None and (shown := self._thinking.close(drops=True)):
                    yield ThinkingDelta(shown)
            case Section.TEXT:
                drops = bool(self.calls or self.unparsed)
                if shown := self.words.close(drops=drops):
                    yield TextDelta(shown)

    def message(self) -> Message:
        """The answer as a message; thinking only where there was any."""
        text, thought = self.words.text, self._thinking.text if self._thinking is not None else ""
        content: str | tuple[TextPart | ThinkingPart, ...] | None = text
        if thought:
            content = (ThinkingPart(thought), TextPart(text)) if text else (ThinkingPart(thought),)
        return Message("assistant", content, tuple(self.calls))

    def _enter(self, section: Section) -> Iterator[Delta]:
        if section is self.section:
            return
        yield from self._leave(self.section)
        self.section = section

    def _leave(self, section: Section) -> Iterator[Delta]:
        """End a section; text follows unless another is entered."""
        match section:
            case Section.THINKING:
                if self._thinking is not None and (shown := self._thinking.close(drops=True)):
                    yield ThinkingDelta(shown)
                if not self.words.text:
                    self.words = Words(self.text_lstrip, "", self.call_prefix)
            case Section.TEXT:
                yield from self._leave_text()
            case Section.CALL:
                self._end_call()
        self.section = Section.TEXT

    def _leave_text(self) -> Iterator[Delta]:
        if shown := self.words.close(drops=True):
            yield TextDelta(shown)

    def _end_call(self) -> None:
        call = self.read_call(self.call)
        if call is None:
            self._keep_unparsed()
        else:
            self.calls.append(call)
            self.call = []

    def _keep_unparsed(self) -> None:
        self.unparsed.append("".join(text for text, _ in self.call))
        self.call = []
        self.is_malformed = True
