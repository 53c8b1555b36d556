"""What a rendered conversation is made of before it becomes ids.

A family says, in order, which *pieces* a conversation consists of; the engine here turns pieces into ids. Text pieces
that no control token separates are encoded together, because that is how the model's own template is tokenized: the
newline of a header and a newline that opens the content may be one token.
"""

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from crucible_train.errors import ModelError
from crucible_train.ports import Tokenizer
from crucible_train.types import EncodedTextChunk, ImageChunk, ModelInput

T = TypeVar("T")
NO_MESSAGE = -1
MAX_HEADER = 256


class Kind(Enum):
    """How a piece becomes ids."""

    CONTROL = "control"
    """The name of one control token."""
    TEXT = "text"
    """Ordinary text, of the template or of a message: it can never become a control token."""
    IMAGE = "image"
    """A picture, which takes as many positions as its chunk says."""
    BREAK = "break"
    """Nothing; what stands before and after is encoded apart."""


class Piece(NamedTuple):
    """One stretch of a rendered conversation.

    Attributes:
        text: the text, or the control token's name.
        kind: how it becomes ids.
        message: the index of the message it belongs to, or ``NO_MESSAGE``.
        is_output: whether the speaker writes it: content and stop token, not the header.
        image: the picture, of an image piece.
    """

    text: str
    kind: Kind = Kind.TEXT
    message: int = NO_MESSAGE
    is_output: bool = False
    image: ImageChunk | None = None


BREAK = Piece("", Kind.BREAK)


class Image(NamedTuple):
    """A picture in a rendered conversation: where its positions begin, and what stands there."""

    position: int
    chunk: ImageChunk


class Segment(NamedTuple):
    """Tokens that follow each other and belong together."""

    num: int
    message: int
    is_output: bool


@dataclass(frozen=True, slots=True)
class EncodedPieces:
    """The ids of a rendered conversation, shape (T,), and what each belongs to.

    A token belongs to the message it ends in. It is output only where all of it is, so a token that joins a header's
    newline with the content's is not. ``merged`` names the messages that have such a token: their prompt's ids are not
    a prefix of these ids.
    """

    ids_T: npt.NDArray[np.int32]
    segments: Sequence[Segment]
    merged: Collection[int] = ()
    images: Sequence[Image] = ()

    def __len__(self) -> int:
        """How many tokens there are."""
        return int(self.ids_T.size)

    def weights(self, messages: Collection[int]) -> npt.NDArray[np.float32]:
        """One for each token that these messages wrote, nought for all others, shape (T,)."""
        values = [1.0 if is_output and message in messages else 0.0 for _, message, is_output in self.segments]
        return np.repeat(np.array(values, np.float32), [num for num, _, _ in self.segments])

    def all_weights(self) -> npt.NDArray[np.float32]:
        """One for each token but the first: nothing stands before that one, so nothing predicts it; shape (T,)."""
        weights = np.ones(len(self), np.float32)
        weights[:1] = 0.0
        return weights

    def output_end(self, message: int) -> int:
        """Where the last token stands that a message wrote, and one further; nought where it wrote none."""
        end = position = 0
        for num, owner, is_output in self.segments:
            position += num
            if is_output and owner == message:
                end = position
        return end

    def begins_with(self, other: "EncodedPieces", num: int) -> bool:
        """Whether the first ``num`` ids of another are the first here, too."""
        return self is other or np.array_equal(self.ids_T[:num], other.ids_T[:num])

    def model_input(self) -> ModelInput:
        """The ids in chunks, a picture at its place."""
        if not self.images:
            return ModelInput((EncodedTextChunk.trusted(self.ids_T),))
        chunks: list[EncodedTextChunk | ImageChunk] = []
        position = 0
        for start, chunk in self.images:
            if start > position:
                chunks.append(EncodedTextChunk(self.ids_T[position:start]))
            chunks.append(chunk)
            position = start + chunk.length
        if position < self.ids_T.size:
            chunks.append(EncodedTextChunk(self.ids_T[position:]))
        return ModelInput(tuple(chunks))


Asks = Generator[Sequence[str], Sequence[npt.NDArray[np.int32]], T]
"""Work that yields the texts it needs encoded and is sent their ids, so that much of it can share a call."""

_Run = tuple[str | None, list[Piece]]
"""Pieces that are encoded together and their text; a piece that is not text stands alone, with None."""


def encode_pieces(rendered: Sequence[Iterable[Piece]], tokenizer: Tokenizer) -> Asks[list[EncodedPieces]]:
    """Turn the pieces of several conversations, or of parts of one, into ids.

    Raises:
        ModelError: the tokenizer lacks a control token that the format needs.
    """
    rendered_runs = [runs_of(pieces) for pieces in rendered]
    texts = list({text: None for runs in rendered_runs for text, _ in runs if text is not None})
    ids = (yield texts) if texts else ()
    known = dict(zip(texts, ids, strict=True))
    return [_assemble(runs, known, tokenizer) for runs in rendered_runs]


def runs_of(pieces: Iterable[Piece]) -> list[_Run]:
    """Group the pieces that are encoded together; empty texts vanish."""
    runs: list[_Run] = []
    together: list[Piece] = []
    for piece in pieces:
        if piece.kind is Kind.TEXT:
            if piece.text:
                together.append(piece)
            continue
        if together:
            runs.append(("".join([one.text for one in together]), together))
            together = []
        if piece.kind is not Kind.BREAK:
            runs.append((None, [piece]))
    if together:
        runs.append(("".join([one.text for one in together]), together))
    return runs


def _assemble(runs: Sequence[_Run], known: Mapping[str, npt.NDArray[np.int32]], tokenizer: Tokenizer) -> EncodedPieces:
    parts: list[npt.NDArray[np.int32]] = []
    segments: list[Segment] = []
    merged: set[int] = set()
    images: list[Image] = []
    for text, pieces in runs:
        first = pieces[0]
        if text is not None:
            ids = known[text]
            if len(pieces) > 1 and any(differ(piece, first) for piece in pieces):
                parts.append(ids)
                segments += _shares(text, pieces, ids, tokenizer, merged)
                continue
        elif first.image is not None:
            images.append(Image(sum(part.size for part in parts), first.image))
            ids = np.full(first.image.length, first.image.placeholder_id, np.int32)
        else:
            ids = _one(control_id(first.text, tokenizer))
        parts.append(ids)
        segments.append(Segment(ids.size, first.message, first.is_output))
    return EncodedPieces(np.concatenate(parts) if parts else np.zeros(0, np.int32), segments, merged, images)


@lru_cache(maxsize=4096)
def _one(id_: int) -> npt.NDArray[np.int32]:
    return np.array([id_], np.int32)


def _shares(
    text: str, pieces: Sequence[Piece], ids: npt.NDArray[np.int32], tokenizer: Tokenizer, merged: set[int]
) -> list[Segment]:
    """Whose the ids of a text are in which several have a share: mostly a header and what follows it."""
    first = pieces[0]
    num_first = next(place for place, piece in enumerate(pieces) if differ(piece, first))
    rest = pieces[num_first]
    header = first.text if num_first == 1 else "".join([piece.text for piece in pieces[:num_first]])
    if len(header) <= MAX_HEADER and not any(differ(piece, rest) for piece in pieces[num_first + 1 :]):
        [known] = tokenizer.encode_batch([header])
        num = known.size
        if ids[:num].tobytes() == known.tobytes():  # so no token has a share in both
            return [
                Segment(num, first.message, first.is_output),
                Segment(ids.size - num, rest.message, rest.is_output),
            ]
    [encoded] = tokenizer.encode_with_offsets([text])
    first_T, last_T = _covered(pieces, encoded.offsets)
    is_output = np.array([piece.is_output for piece in pieces])
    owners = np.array([piece.message for piece in pieces])
    owner_T = owners[last_T]
    num_inputs_until = np.concatenate([[0], np.cumsum(~is_output)])
    whole_output_T = (num_inputs_until[last_T + 1] == num_inputs_until[first_T]) & (owners[first_T] == owner_T)
    merged.update(owner_T[is_output[last_T] & ~whole_output_T].tolist())
    return [Segment(1, *share) for share in zip(owner_T.tolist(), whole_output_T.tolist(), strict=True)]


def differ(one: Piece, other: Piece) -> bool:
    """Whether two pieces belong to different owners."""
    return one.message != other.message or one.is_output is not other.is_output


def _covered(
    run: Sequence[Piece], offsets: Sequence[tuple[int, int]]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For each token of a run, the first and the last of the run's pieces it takes characters from."""
    ends = np.cumsum([len(piece.text) for piece in run])
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(ends, spans[:, 0], side="right")
    last = np.searchsorted(ends, np.maximum(spans[:, 1], spans[:, 0] + 1) - 1, side="right")
    return np.minimum(first, len(run) - 1), np.minimum(last, len(run) - 1)


def control_id(name: str, tokenizer: Tokenizer) -> int:
    """The id of a control token.

    Raises:
        ModelError: the tokenizer lacks it.
    """
    try:
        return tokenizer.control_tokens[name]
    except KeyError:
        raise ModelError(f"tokenizer {tokenizer.name} has no control token {name!r}, which this format needs") from None
