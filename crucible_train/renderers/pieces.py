"""What a rendered conversation is made of before it becomes ids.

A family says, in order, which *pieces* a conversation consists of; the engine here turns pieces into ids. Text pieces
that no control token separates are encoded together, because that is how the model's own template is tokenized: the
newline of a header and a newline that opens the content may be one token.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from crucible_train.errors import ModelError
from crucible_train.ports import Tokenizer
from crucible_train.types import EncodedTextChunk, ImageChunk, ModelInput

T = TypeVar("T")
NO_MESSAGE = -1
_MAX_HEADER = 256


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


@dataclass(frozen=True, slots=True)
class EncodedPieces:
    """The ids of a rendered conversation and what each belongs to; every array has shape (T,).

    ``message_T`` is the message a token ends in; ``is_output_T`` is true only where all of the token is output, so a
    token that joins a header's newline with the content's is not. ``merged`` names the messages that have such a token:
    their prompt's ids are not a prefix of these ids.
    """

    ids_T: npt.NDArray[np.int32]
    message_T: npt.NDArray[np.int32]
    is_output_T: npt.NDArray[np.bool_]
    merged: frozenset[int] = frozenset()
    images: tuple[Image, ...] = ()

    def __len__(self) -> int:
        """How many tokens there are."""
        return int(self.ids_T.size)

    def model_input(self) -> ModelInput:
        """The ids in chunks, a picture at its place."""
        if not self.images:
            return ModelInput.from_ints(self.ids_T)
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


Asks = Generator[Sequence[str], Sequence[Sequence[int]], T]
"""Work that yields the texts it needs encoded and is sent their ids, so that much of it can share a call."""


def encode_pieces(rendered: Sequence[Iterable[Piece]], tokenizer: Tokenizer) -> Asks[list[EncodedPieces]]:
    """Turn the pieces of several conversations, or of parts of one, into ids.

    Raises:
        ModelError: the tokenizer lacks a control token that the format needs.
    """
    rendered_runs = [_runs(pieces) for pieces in rendered]
    texts = list(dict.fromkeys(run.text for runs in rendered_runs for run in runs if run.kind is Kind.TEXT))
    ids = (yield texts) if texts else ()
    known = dict(zip(texts, ids, strict=True))
    return [_assemble(runs, known, tokenizer) for runs in rendered_runs]


class _Run(NamedTuple):
    """Pieces that are encoded together."""

    kind: Kind
    text: str
    pieces: list[Piece]


def _assemble(runs: Sequence[_Run], known: Mapping[str, Sequence[int]], tokenizer: Tokenizer) -> EncodedPieces:
    made = _Assembly()
    for run in runs:
        first = run.pieces[0]
        if run.kind is Kind.CONTROL:
            made.add((control_id(first.text, tokenizer),), first.message, first.is_output)
        elif first.image is not None:
            made.images.append(Image(len(made.ids), first.image))
            made.add([first.image.placeholder_id] * first.image.length, first.message, first.is_output)
        elif all(_owner(piece) == _owner(first) for piece in run.pieces):
            made.add(known[run.text], first.message, first.is_output)
        else:
            made.add_shared(run, known[run.text], tokenizer)
    return made.encoded()


class _Assembly:
    """Ids that are put together, and to whom each belongs."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.images: list[Image] = []
        self._merged: set[int] = set()
        self._lengths: list[int] = []
        self._owners: list[int] = []
        self._are_output: list[bool] = []

    def add(self, ids: Sequence[int], message: int, is_output: bool) -> None:
        self.ids.extend(ids)
        self._belong(len(ids), message, is_output)

    def add_shared(self, run: _Run, ids: Sequence[int], tokenizer: Tokenizer) -> None:
        """Ids of text in which several have a share: mostly a header and what follows it."""
        first = run.pieces[0]
        header = next(place for place, piece in enumerate(run.pieces) if _owner(piece) != _owner(first))
        rest = run.pieces[header]
        text = "".join(piece.text for piece in run.pieces[:header])
        if len(text) <= _MAX_HEADER and all(_owner(piece) == _owner(rest) for piece in run.pieces[header:]):
            known = tokenizer.encode(text)
            if ids[: len(known)] == known:  # so no token has a share in both
                self.add(known, first.message, first.is_output)
                self.add(ids[len(known) :], rest.message, rest.is_output)
                return
        [encoded] = tokenizer.encode_with_offsets([run.text])
        first_T, last_T = _covered(run.pieces, encoded.offsets)
        is_output = np.array([piece.is_output for piece in run.pieces])
        owner_T = np.array([piece.message for piece in run.pieces])[last_T]
        num_inputs_until = np.concatenate([[0], np.cumsum(~is_output)])
        whole_output_T = num_inputs_until[last_T + 1] == num_inputs_until[first_T]
        self._merged.update(owner_T[is_output[last_T] & ~whole_output_T].tolist())
        self.ids.extend(encoded.ids)
        for message, is_whole in zip(owner_T.tolist(), whole_output_T.tolist(), strict=True):
            self._belong(1, message, is_whole)

    def encoded(self) -> EncodedPieces:
        return EncodedPieces(
            np.array(self.ids, np.int32),
            np.repeat(np.array(self._owners, np.int32), self._lengths),
            np.repeat(np.array(self._are_output, np.bool_), self._lengths),
            frozenset(self._merged),
            tuple(self.images),
        )

    def _belong(self, num: int, message: int, is_output: bool) -> None:
        self._lengths.append(num)
        self._owners.append(message)
        self._are_output.append(is_output)


def _owner(piece: Piece) -> tuple[int, bool]:
    return piece.message, piece.is_output


def _covered(
    run: Sequence[Piece], offsets: Sequence[tuple[int, int]]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For each token of a run, the first and the last of the run's pieces it takes characters from."""
    ends = np.cumsum([len(piece.text) for piece in run])
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(ends, spans[:, 0], side="right")
    last = np.searchsorted(ends, np.maximum(spans[:, 1], spans[:, 0] + 1) - 1, side="right")
    return np.minimum(first, len(run) - 1), np.minimum(last, len(run) - 1)


def _runs(pieces: Iterable[Piece]) -> list[_Run]:
    """Group the pieces that are encoded together; empty texts vanish, each control token and image stands alone."""
    runs: list[_Run] = []
    together: list[Piece] = []

    def close() -> None:
        if together:
            text = together[0].text if len(together) == 1 else "".join(piece.text for piece in together)
            runs.append(_Run(Kind.TEXT, text, together.copy()))
            together.clear()

    for piece in pieces:
        if piece.kind is Kind.TEXT:
            if piece.text:
                together.append(piece)
            continue
        close()
        if piece.kind is not Kind.BREAK:
            runs.append(_Run(piece.kind, piece.text, [piece]))
    close()
    return runs


def control_id(name: str, tokenizer: Tokenizer) -> int:
    """The id of a control token.

    Raises:
        ModelError: the tokenizer lacks it.
    """
    try:
        return tokenizer.control_tokens[name]
    except KeyError:
        raise ModelError(f"tokenizer {tokenizer.name} has no control token {name!r}, which this format needs") from None


def longest_common_prefix(left: npt.NDArray[np.int32], right: npt.NDArray[np.int32]) -> int:
    """How many leading ids two renderings share."""
    num = min(left.size, right.size)
    differing = np.flatnonzero(left[:num] != right[:num])
    return int(differing[0]) if differing.size else num


def output_spans(encoded: EncodedPieces, message: int) -> Sequence[tuple[int, int]]:
    """The half-open ranges of a message's output tokens, in order."""
    mask = np.concatenate([[False], (encoded.message_T == message) & encoded.is_output_T, [False]])
    edges = np.flatnonzero(mask[1:] != mask[:-1]).tolist()
    return [(start, end) for start, end in list(pairwise(edges))[::2]]
