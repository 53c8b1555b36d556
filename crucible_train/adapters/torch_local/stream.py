"""The one data layout: a flat stream of tokens cut into segments.

A segment is a stretch of one sequence. It may continue another one, its *parent*, whose tokens it then sees as if they
stood before it; several segments may share a parent. So no position is padding, a prompt that several sequences share
is computed once, and supervised examples, preference pairs and groups of rollouts are the same forward pass.

    tokens_T      [ system prompt | question 1, answer 1 | question 2, answer 2 ]
    segments          0 (no parent)     1 (parent 0)           2 (parent 0)

Axes: T positions of the stream, S scored positions, D datums, N positions of one datum.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_train.errors import ModelError
from crucible_train.losses import DistributionLoss, LossFunction
from crucible_train.types import Datum

NO_PARENT = -1
# Shorter shared prefixes are computed twice: attention over a parent costs more than a few tokens save.
MIN_SHARED_TOKENS = 16
_MAX_PAIRS = 1 << 24  # losses read them as float32

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """Positions ``start`` to ``end`` of the stream; the first of them is position ``offset`` of its sequence."""

    start: int
    end: int
    parent: int
    offset: int

    def __len__(self) -> int:
        """How many positions it has."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, eq=False)
class TokenStream:
    """Tokens, segments and scored positions of one micro-batch.

    Attributes:
        tokens_T: ids.
        positions_T: the place of each token in its own sequence.
        segments: in stream order; a parent stands before its children.
        rows_S: the stream position whose hidden state predicts each target; a row may be scored more than once.
        targets_S: what it is to predict; of shape (S, K) where positions have several targets.
        weights_S: how much that counts, of the same shape.
        datum_S: which datum the score belongs to.
        place_S: at which of the datum's positions.
        inputs_S: what else the loss reads of each score, by name.
    """

    tokens_T: Ints
    positions_T: Ints
    segments: tuple[Segment, ...]
    rows_S: Ints
    targets_S: Ints
    weights_S: npt.NDArray[np.float32]
    datum_S: Ints
    place_S: Ints
    inputs_S: Mapping[str, npt.NDArray[np.float32]]

    @property
    def num_tokens(self) -> int:
        """How many positions are computed."""
        return int(self.tokens_T.size)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One datum, cut after the last position that counts: what follows it is never computed.

    Those with the same ``pair`` must stand in one stream; None stands wherever there is room.
    """

    index: int
    tokens_N: Ints
    places_S: Ints
    targets_S: Ints
    weights_S: npt.NDArray[np.float32]
    inputs_S: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    pair: int | None = None


def scored(index: int, datum: Datum, function: LossFunction | DistributionLoss) -> Scored:
    """Take from a datum what the loss needs, at the positions that count.

    Raises:
        ValueError: the datum lacks an input of the loss, the shape of one is not what the loss takes, or a pair's
            number is not the same at every position or too large for float32.
    """
    given = datum.loss_fn_inputs
    missing = [name for name in ("target_tokens", *function.required) if name not in given]
    if missing:
        raise ValueError(f"datum {index} has no {missing[0]!r}")
    names = [name for name in (*function.required, *function.optional) if name in given and name != "weights"]
    shape = given["target_tokens"].shape
    axes = "(N,) or (N, K)" if function.takes_several else "(N,)"
    for name in ("target_tokens", "weights", *names):
        num_axes = len(given[name].shape) if name in given else 1
        if num_axes != 1 and not (num_axes == 2 and function.takes_several and name in ("target_tokens", "weights")):
            raise ValueError(f"datum {index}: {name} must have shape {axes}, not {given[name].shape}")
    weights = _weights(datum, function)
    if weights.shape != shape:
        raise ValueError(f"datum {index}: target_tokens have shape {shape}, weights {weights.shape}")
    counts = weights != 0 if weights.ndim == 1 else (weights != 0).any(axis=1)
    for name in function.also_scored:
        if name in given:
            counts |= given[name].to_numpy() != 0
    places = np.flatnonzero(counts)
    end = int(places[-1]) + 1 if places.size else 0
    return Scored(
        index,
        datum.model_input.to_array()[:end].astype(np.int64),
        places,
        given["target_tokens"].to_numpy()[places].astype(np.int64),
        weights[places].astype(np.float32, copy=False),
        {name: given[name].to_numpy()[places].astype(np.float32, copy=False) for name in names},
        None if function.coupled_by is None else _pair(index, given[function.coupled_by].to_numpy()),
    )


def _pair(index: int, numbers_N: npt.NDArray[np.number]) -> int:
    number = int(numbers_N[0]) if numbers_N.size else 0
    if (numbers_N != number).any() or not 0 <= number < _MAX_PAIRS:
        raise ValueError(f"datum {index}: pair must be one number, 0 to {_MAX_PAIRS - 1}, at every position")
    return number


def _weights(datum: Datum, function: LossFunction | DistributionLoss) -> npt.NDArray[np.float32]:
    """How much each target counts: as the datum says, or once where the loss counts it."""
    given = datum.loss_fn_inputs
    if "weights" in given:
        return given["weights"].to_numpy().astype(np.float32, copy=False)
    if function.counted_by is None:
        return np.ones(given["target_tokens"].shape, np.float32)
    return (given[function.counted_by].to_numpy() != 0).astype(np.float32)


def build_stream(items: Sequence[Scored], *, share: bool = True) -> TokenStream:
    """Lay sequences out as one stream; with ``share``, common prefixes become parents."""
    items = [item for item in items if item.tokens_N.size]
    builder = _Builder(items)
    if share:
        ordered = sorted(items, key=lambda item: item.tokens_N.astype(">i8").tobytes())
        common = [shared_prefix(left.tokens_N, right.tokens_N) for left, right in pairwise(ordered)]
        builder.grow(ordered, common, depth=0, parent=NO_PARENT)
    else:
        for item in items:
            builder.leaf(item, 0, NO_PARENT)
    return builder.finish()


def shared_prefix(left: Ints, right: Ints) -> int:
    """How many leading tokens two sequences share."""
    num = min(left.size, right.size)
    differing = np.flatnonzero(left[:num] != right[:num])
    return int(differing[0]) if differing.size else num


class _Builder:
    """Grows the segments of a radix tree over sequences that stand in lexicographic order."""

    def __init__(self, items: Sequence[Scored]) -> None:
        self.segments: list[Segment] = []
        self.tokens: list[Ints] = []
        self.num_tokens = 0
        self.rows: dict[int, list[Ints]] = {item.index: [] for item in items}
        self.items = {item.index: item for item in items}

    def grow(self, items: Sequence[Scored], common: Sequence[int], depth: int, parent: int) -> None:
        """Add what ``items`` have from ``depth`` on; ``common[i]`` is what items i and i+1 share."""
        if len(items) == 1:
            self.leaf(items[0], depth, parent)
            return
        shared = min(common)
        if shared - depth >= MIN_SHARED_TOKENS:
            parent = self._segment(items, depth, shared, parent)
            depth = shared
        start = 0
        for end in [*(i + 1 for i, length in enumerate(common) if length == shared), len(items)]:
            self.grow(items[start:end], common[start : end - 1], depth, parent)
            start = end

    def leaf(self, item: Scored, depth: int, parent: int) -> None:
        """Add what is left of one sequence."""
        if item.tokens_N.size > depth:
            self._segment([item], depth, int(item.tokens_N.size), parent)

    def finish(self) -> TokenStream:
        tokens = np.concatenate(self.tokens) if self.tokens else np.zeros(0, np.int64)
        positions = [np.arange(s.offset, s.offset + len(s)) for s in self.segments]
        items = list(self.items.values())
        rows = [np.concatenate(self.rows[item.index])[item.places_S] for item in items]
        return TokenStream(
            tokens_T=tokens,
            positions_T=_joined(positions),
            segments=tuple(self.segments),
            rows_S=_joined(rows),
            targets_S=_padded([item.targets_S for item in items], np.int64),
            weights_S=_padded([item.weights_S for item in items], np.float32),
            datum_S=_joined([np.full(item.places_S.size, item.index) for item in items]),
            place_S=_joined([item.places_S for item in items]),
            inputs_S={name: np.concatenate([item.inputs_S[name] for item in items]) for name in _shared_names(items)},
        )

    def _segment(self, items: Sequence[Scored], begin: int, end: int, parent: int) -> int:
        start = self.num_tokens
        self.num_tokens += end - begin
        self.tokens.append(items[0].tokens_N[begin:end])
        self.segments.append(Segment(start, self.num_tokens, parent, begin))
        for item in items:
            self.rows[item.index].append(np.arange(start, self.num_tokens))
        return len(self.segments) - 1


def _shared_names(items: Sequence[Scored]) -> Sequence[str]:
    """The inputs of the sequences.

    Raises:
        ValueError: one has an input that another lacks.
    """
    names = tuple(items[0].inputs_S) if items else ()
    for item in items:
        if tuple(item.inputs_S) != names:
            differing = sorted(set(names) ^ set(item.inputs_S))
            raise ValueError(f"datums {items[0].index} and {item.index}: only one of them has {differing[0]!r}")
    return names


def _padded(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    """One array of all rows; where some have several columns, all get as many, with zeros."""
    num_columns = max((array.shape[1] for array in arrays if array.ndim == 2), default=0)
    if not num_columns:
        return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)
    out = np.zeros((sum(len(array) for array in arrays), num_columns), dtype)
    start = 0
    for array in arrays:
        columns = array[:, None] if array.ndim == 1 else array
        out[start : start + len(array), : columns.shape[1]] = columns
        start += len(array)
    return out


def _joined(arrays: Sequence[Ints]) -> Ints:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def lay_out(
    datums: Sequence[Datum], function: LossFunction | DistributionLoss, max_tokens: int, *, joins: bool
) -> list[TokenStream]:
    """The streams of a pass; each sequence has one of its own where the model cannot compute several in one.

    Raises:
        ModelError: the loss needs pairs in one stream, and the model cannot have them there.
        ValueError: a datum lacks an input of the loss.
    """
    items = [scored(index, datum, function) for index, datum in enumerate(datums)]
    if joins:
        return micro_batches(items, max_tokens)
    if function.coupled_by is not None:
        raise ModelError("model: it mixes tokens in other ways than attention, so it cannot be trained on pairs")
    return micro_batches(items, 0, share=False)


def micro_batches(items: Sequence[Scored], max_tokens: int, *, share: bool = True) -> list[TokenStream]:
    """Lay sequences out as streams of at most ``max_tokens`` positions; what is longer gets a stream of its own.

    The sequences of a pair stay together. The order is fixed by the sequences alone: neighbours share the longest
    prefixes. It is cut where the fewest positions have to be computed again; of such cuts, into the fewest streams; of
    those, into the most equal ones. Which pairs stand together changes nothing but rounding, since losses are sums.
    """
    units = _units([item for item in items if item.tokens_N.size], share=share)
    ordered = [item for unit in units for item in unit]
    common = [shared_prefix(left.tokens_N, right.tokens_N) if share else 0 for left, right in pairwise(ordered)]
    ends = np.cumsum([len(unit) for unit in units], dtype=np.int64)
    cuts = _cuts([int(item.tokens_N.size) for item in ordered], common, ends, max_tokens)
    return [build_stream(ordered[start:end], share=share) for start, end in pairwise(cuts)]


def _units(items: Sequence[Scored], *, share: bool) -> list[list[Scored]]:
    """What must stay together, each sorted, and sorted by what stands first."""

    def order(item: Scored) -> bytes:
        return item.tokens_N.astype(">i8").tobytes()

    together: dict[tuple[bool, int], list[Scored]] = {}
    for item in sorted(items, key=order) if share else items:
        together.setdefault((item.pair is None, item.index if item.pair is None else item.pair), []).append(item)
    return list(together.values())


def _cuts(lengths: Sequence[int], common: Sequence[int], unit_ends: Ints, max_tokens: int) -> list[int]:
    """Where sequences are cut into streams, 0 and their number included: the shortest path over all cuts.

    A stream costs the positions that are computed again for its first sequence, then 1, then the square of its size;
    each outweighs all of the next. What stands between two of ``unit_ends`` is not cut.
    """
    num = len(lengths)
    saved = np.array([0, *(one if one >= MIN_SHARED_TOKENS else 0 for one in common)], np.int64)
    ends = np.cumsum(np.array(lengths, np.int64) - saved[:num])
    # Where prefixes of several lengths meet, what one has more than another may be too short for a segment.
    slack = np.cumsum(saved[:num] > 0) * (MIN_SHARED_TOKENS - 1)
    least, before = np.full(num + 1, np.inf), np.zeros(num + 1, np.int64)
    least[0] = 0
    for first, unit_end in pairwise([0, *unit_ends.tolist()]):
        sizes = ends[first:] - ends[first] + lengths[first]
        most = int(np.searchsorted(sizes, max_tokens, "right"))
        sure = int(np.searchsorted(sizes + slack[first:] - slack[first], max_tokens, "right"))
        count = max(unit_end - first, _fitting(lengths[first : first + most], common[first:], sure, max_tokens))
        reached = unit_ends[(unit_ends > first) & (unit_ends <= first + count)]
        shares = np.minimum(1, sizes[reached - first - 1] / max(1, max_tokens))
        costs = least[first] + (num + 1) * ((num + 1) * saved[first] + 1) + shares**2
        is_less = costs < least[reached]
        before[reached] = np.where(is_less, first, before[reached])
        least[reached] = np.where(is_less, costs, least[reached])
    cuts = [num]
    while cuts[-1] > 0:
        cuts.append(int(before[cuts[-1]]))
    return cuts[::-1]


def _fitting(lengths: Sequence[int], common: Sequence[int], sure: int, max_tokens: int) -> int:
    """How many of these sequences, from the first on, one stream holds: ``sure`` of them at least."""
    counts = range(sure + 1, len(lengths) + 1)
    return sure + bisect_right(counts, max_tokens, key=lambda num: _size(lengths[:num], common[: num - 1]))


def _size(lengths: Sequence[int], common: Sequence[int], depth: int = 0) -> int:
    """How many positions a stream of these sequences has from ``depth`` on: what ``_Builder.grow`` would add."""
    shared = min(common, default=lengths[0])
    if len(lengths) == 1:
        return shared - depth
    own = shared - depth if shared - depth >= MIN_SHARED_TOKENS else 0
    cuts = [0, *(place + 1 for place, one in enumerate(common) if one == shared), len(lengths)]
    rest = (_size(lengths[start:end], common[start : end - 1], depth + own) for start, end in pairwise(cuts))
    return own + sum(rest)
