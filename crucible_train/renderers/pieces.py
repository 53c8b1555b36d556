"""What a rendered conversation is made of before it becomes ids.

A family says, in order, which *pieces* a conversation consists of; the engine here turns pieces into ids. Text pieces
that no control token separates are encoded together, because that is how the model's own template is tokenized: the
newline of a header and a newline that opens the content may be one token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crucible_train.errors import ModelError
from crucible_train.ports import Tokenizer

NO_MESSAGE = -1


class Kind(Enum):
    """How a piece becomes ids."""

    CONTROL = "control"
    """The name of one control token."""
    TEXT = "text"
    """Ordinary text, of the template or of a message: it can never become a control token."""
    BREAK = "break"
    """Nothing; what stands before and after is encoded apart."""


class Piece(NamedTuple):
    """One stretch of a rendered conversation.

    Attributes:
        text: the text, or the control token's name.
        kind: how it becomes ids.
        message: the index of the message it belongs to, or ``NO_MESSAGE``.
        is_output: whether the speaker writes it: content and stop token, not the header.
    """

    text: str
    kind: Kind = Kind.TEXT
    message: int = NO_MESSAGE
    is_output: bool = False


BREAK = Piece("", Kind.BREAK)


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

    def __len__(self) -> int:
        """How many tokens there are."""
        return int(self.ids_T.size)


def encode_pieces(pieces: Iterable[Piece], tokenizer: Tokenizer) -> EncodedPieces:
    """Turn pieces into ids.

    Raises:
        ModelError: the tokenizer lacks a control token that the format needs.
    """
    runs = _runs(pieces)
    texts = ["".join(piece.text for piece in run) for run in runs if run[0].kind is Kind.TEXT]
    encoded = iter(tokenizer.encode_batch(texts) if texts else ())
    ids: list[int] = []
    messages: list[int] = []
    is_output: list[bool] = []
    merged: set[int] = set()
    for run in runs:
        if run[0].kind is Kind.CONTROL:
            ids.append(control_id(run[0].text, tokenizer))
            messages.append(run[0].message)
            is_output.append(run[0].is_output)
            continue
        found = next(encoded)
        ids.extend(found.ids)
        if len(run) == 1:
            messages.extend([run[0].message] * len(found.ids))
            is_output.extend([run[0].is_output] * len(found.ids))
            continue
        first, last = _covered(run, found.offsets)
        outputs = np.array([piece.is_output for piece in run])
        owners = np.array([piece.message for piece in run])[last]
        num_inputs_until = np.concatenate([[0], np.cumsum(~outputs)])
        whole_output = num_inputs_until[last + 1] == num_inputs_until[first]
        merged.update(owners[outputs[last] & ~whole_output].tolist())
        messages.extend(owners.tolist())
        is_output.extend(whole_output.tolist())
    return EncodedPieces(
        np.array(ids, np.int32), np.array(messages, np.int32), np.array(is_output, np.bool_), frozenset(merged)
    )


def _covered(
    run: Sequence[Piece], offsets: Sequence[tuple[int, int]]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For each token of a run, the first and the last of the run's pieces it takes characters from."""
    ends = np.cumsum([len(piece.text) for piece in run])
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(ends, spans[:, 0], side="right")
    last = np.searchsorted(ends, np.maximum(spans[:, 1], spans[:, 0] + 1) - 1, side="right")
    return np.minimum(first, len(run) - 1), np.minimum(last, len(run) - 1)


def _runs(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Group the pieces that are encoded together; empty texts vanish, each control token stands alone."""
    runs: list[list[Piece]] = []
    is_open = False
    for piece in pieces:
        if piece.kind is not Kind.TEXT:
            is_open = False
            if piece.kind is Kind.CONTROL:
                runs.append([piece])
        elif piece.text:
            if is_open:
                runs[-1].append(piece)
            else:
                runs.append([piece])
            is_open = True
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
