"""How an answer of gpt-oss reads: messages one after the other, each in a channel of its own.

A header is ``assistant``, perhaps ``to=RECIPIENT``, then ``<|channel|>`` and the channel's name, perhaps the recipient
here instead, and perhaps the type of what follows ``<|message|>``. The first header of an answer begins in the prompt.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crucible_train.renderers.answers import AnswerReader, Delta, Ending, Section
from crucible_train.renderers.checks import is_json_object
from crucible_train.renderers.gpt_oss_tools import NAMESPACE
from crucible_train.types import ToolCall

SECTIONS = {"analysis": Section.THINKING, "commentary": Section.TEXT, "final": Section.TEXT, "": Section.TEXT}
_TO = " to="
_GAP = "\n\n"


class _Header(NamedTuple):
    """Who speaks to whom, and in which channel."""

    role: str
    channel: str
    recipient: str | None

    @classmethod
    def of(cls, written: Sequence[tuple[str, bool]]) -> "_Header":
        before, after, is_channel = "", "", False
        for text, is_control in written:
            if is_control and text != "<|channel|>":
                break
            if is_control:
                is_channel = True
            elif is_channel:
                after += text
            else:
                before += text
        role, _, recipient = before.partition(_TO)
        channel, _, late_recipient = after.partition(_TO)
        if not recipient:
            recipient = next(iter(late_recipient.split()), "")
        return cls(role.strip(), next(iter(channel.split()), ""), recipient or None)


class GptOssReader(AnswerReader):
    """Analysis is thinking; commentary without a recipient and final are text; what has a recipient is a call.

    Several messages of a kind are joined by a blank line. Text without any header is read as text: it goes on with what
    the prompt was prefilled with.
    """

    def __init__(self) -> None:
        """Begin in a header, which the prompt opened."""
        super().__init__()
        self._header: list[tuple[str, bool]] | None = []  # None within a message
        self._is_first = True
        self._recipient: str | None = None
        self._gap = ""

    def text(self, text: str) -> Iterator[Delta]:
        """Take words of a header or of a message."""
        if self._header is not None:
            self._header.append((text, False))
            if self._is_first and not _may_be_header(self._header):
                yield from self._read_as_text()
            return
        gap, self._gap = self._gap, ""
        yield from super().text(gap + text)

    def control(self, name: str) -> Iterator[Delta]:
        """Take a marker; one that cannot stand where it does is text."""
        if self._header is None and name == "<|end|>":
            yield from self._end_message()
        elif name == "<|start|>" or (self._header is not None and name == "<|end|>"):
            self.is_malformed |= self._header is None or bool(self._header) or name == "<|end|>"
            yield from self._end_message()
            self._is_first = False
        elif self._header is None:
            self.is_malformed |= name in {"<|channel|>", "<|message|>"}
            yield from super().control(name)
        elif name == "<|message|>":
            yield from self._begin_message(self._header)
        else:
            self._header.append((name, True))

    def finish(self, ending: Ending) -> Iterator[Delta]:
        """The answer is over; one that ends as a call does must be a call."""
        self.is_malformed |= ending.stop == "<|call|>" and (
            self._header is not None or self.section is not Section.CALL
        )
        yield from self._end_message()

    def read_call(self, stretches: Sequence[tuple[str, bool]]) -> ToolCall | None:
        """A call of one of the declared functions, with a JSON object in plain text."""
        body = "".join(text for text, _ in stretches[1:])
        namespace, _, name = (self._recipient or "").partition(".")
        if namespace != NAMESPACE or not name or any(is_control for _, is_control in stretches[1:]):
            return None
        return ToolCall(name, body) if is_json_object(body) else None

    def _begin_message(self, written: Sequence[tuple[str, bool]]) -> Iterator[Delta]:
        header = _Header.of(written)
        self._header, self._is_first, self._recipient = None, False, header.recipient
        self.is_malformed |= header.role not in {"", "assistant"}
        if header.recipient is not None:
            yield from self._enter(Section.CALL)
            self.call = [(_joined(written) + "<|message|>", True)]
            return
        self.is_malformed |= header.channel not in SECTIONS
        yield from self._enter(SECTIONS.get(header.channel, Section.TEXT))
        said = self._thinking.text if self.section is Section.THINKING and self._thinking else ""
        said = self.words.text if self.section is Section.TEXT else said
        self._gap = _GAP if said else ""

    def _end_message(self) -> Iterator[Delta]:
        """Close what is open; a header comes next."""
        if self._header is None:
            yield from self._leave(self.section)
        elif _Header.of(self._header).recipient is not None:
            self.call = list(self._header)
            self._keep_unparsed()
        elif self._is_first and self._header and not any(is_control for _, is_control in self._header):
            yield from self._read_as_text()
            yield from self._leave(self.section)
        else:
            self.is_malformed |= bool(self._header)
        self._header = []

    def _read_as_text(self) -> Iterator[Delta]:
        text = _joined(self._header or ())
        self._header, self._is_first = None, False
        yield from super().text(text)


def _joined(stretches: Sequence[tuple[str, bool]]) -> str:
    return "".join(text for text, _ in stretches)


def _may_be_header(written: Sequence[tuple[str, bool]]) -> bool:
    """Whether the first header's words, which follow the prompt's, may be one: a recipient at most, or a channel."""
    text = written[0][0] if written[0][1] else _joined([part for part in written if not part[1]])
    return written[0][1] or text.startswith(_TO) or _TO.startswith(text)
