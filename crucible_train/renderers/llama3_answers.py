"""How an answer of Llama 3.1 and 3.2 reads: a call is an answer that is nothing but its JSON.

{"name": "NAME", "parameters": {...}}

No marker tells it from text. So an answer that begins as one is held back in a stream until it is whole, and a text
that is such an object is a call. The models may write ``<|python_tag|>`` before a call; what follows it is one.
"""

import json
import re
from collections.abc import Iterator, Sequence

from crucible_train.renderers.answers import AnswerReader, Delta, Ending, Section
from crucible_train.types import ToolCall

_BEGINNING = '{"name":"'
_CALL = re.compile(r'\s*\{\s*"name"\s*:\s*"(?:[^"\\]|\\.)*"\s*,\s*"parameters"\s*:')


class Llama31Reader(AnswerReader):
    """Text, or one call."""

    opens = {"<|python_tag|>": Section.CALL}  # noqa: RUF012  # a ClassVar, as the base class declares it

    def __init__(self) -> None:
        """Begin with what may yet become a call."""
        super().__init__()
        self._held: str | None = ""

    def text(self, text: str) -> Iterator[Delta]:
        """Take words; the first ones wait until it is clear that they do not begin a call."""
        if self._held is None or self.section is Section.CALL:
            yield from super().text(text)
            return
        self._held += text
        if not _may_be_call(self._held):
            yield from self._show_held()

    def control(self, name: str) -> Iterator[Delta]:
        """Take a marker; only that of a call has a meaning."""
        if self.section is not Section.CALL:
            yield from self._show_held()
        yield from super().control(name)

    def finish(self, ending: Ending) -> Iterator[Delta]:
        """The answer is over: what was held back is a call, or looks like one, or is text."""
        if self._held is not None and _CALL.match(self._held):
            self.call, self._held, self.section = [(self._held, False)], None, Section.CALL
        if self.section is Section.CALL:
            yield from self._leave(Section.CALL)
        else:
            yield from self._show_held()
            yield from super().finish(ending)

    def read_call(self, stretches: Sequence[tuple[str, bool]]) -> ToolCall | None:
        """The call, where the text is such an object and nothing else."""
        if any(is_control for _, is_control in stretches):
            return None
        try:
            found = json.loads("".join(text for text, _ in stretches))
        except (ValueError, RecursionError):
            return None
        match found:
            case {"name": str(name), "parameters": dict(parameters), **rest} if not rest:
                return ToolCall(name, json.dumps(parameters, ensure_ascii=False))
        return None

    def _show_held(self) -> Iterator[Delta]:
        held, self._held = self._held, None
        if held:
            yield from super().text(held)


def _may_be_call(text: str) -> bool:
    squeezed = "".join(text.split())
    return squeezed.startswith(_BEGINNING) or _BEGINNING.startswith(squeezed)
