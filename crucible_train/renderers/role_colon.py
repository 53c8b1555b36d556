"""Role and colon, for models without a chat format (the layout of tinker-cookbook's ``role_colon``).

    User: CONTENT¶¶
    Assistant: CONTENT¶¶User:        (trained: CONTENT, blank line, and the "User:" that hands over)

The format has no control token but an opening BOS, so the stop is a text. Header and body are encoded apart.
"""

from collections.abc import Iterable, Iterator, Sequence

from crucible_train.renderers.answers import AnswerReader, Delta, Ending, Termination, TextDelta
from crucible_train.renderers.base import Renderer, Tools
from crucible_train.renderers.pieces import BREAK, Kind, Piece
from crucible_train.types import Message

HAND_OVER = "User:"
STOP = f"\n\n{HAND_OVER}"


class _Reader(AnswerReader):
    """Takes away the space before an answer, and a blank line after one that ends without the next user's header."""

    call_prefix = "\n\n"
    _is_begun = False

    def text(self, text: str) -> Iterator[Delta]:
        yield from super().text(text if self._is_begun else text.removeprefix(" "))
        self._is_begun = True

    def finish(self, ending: Ending) -> Iterator[Delta]:
        if shown := self.words.close(drops=ending.termination is not Termination.STOP_SEQUENCE):
            yield TextDelta(shown)


class RoleColon(Renderer):
    """``Role: content`` and a blank line."""

    name = "role_colon"
    reader = _Reader
    verbatim = ()
    extends_history = False  # an answer is only followed by the "User:" it was trained to write if a user comes next

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """Every message alike; the header of a user after an assistant is the assistant's stop."""
        if self.tokenizer.bos_token is not None:
            yield Piece(self.tokenizer.bos_token, Kind.CONTROL)
        previous = ""
        for index, message in enumerate(messages):
            yield BREAK
            if previous == "assistant" and message.role == "user":
                yield Piece(HAND_OVER, message=index - 1, is_output=True)
            else:
                yield Piece(f"{message.role.capitalize()}:", message=index)
            yield BREAK
            for text in (" ", message.text, "\n\n"):
                yield Piece(text, message=index, is_output=True)
            previous = message.role
        if previous == "assistant":
            yield BREAK
            yield Piece(HAND_OVER, message=len(messages) - 1, is_output=True)

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The conversation and an open header; a closing assistant message hands over to nobody here."""
        pieces = list(self.conversation_pieces(messages, tools))
        if messages[-1].role == "assistant":
            pieces.pop()
        yield from pieces
        yield BREAK
        yield Piece(f"{role.capitalize()}:")

    def stop_sequences(self) -> Sequence[str]:
        """A blank line and the next user's header."""
        return [STOP]
