"""The one data layout: a flat stream of tokens cut into segments.

A segment is a stretch of one sequence. It may continue another one, its *parent*, whose tokens it then sees as if they
stood before it; several segments may share a parent. So no position is padding, a prompt that several sequences share
is computed once, and supervised examples, preference pairs and groups of rollouts are the same forward pass.

    tokens_T      [ system prompt | question 1, answer 1 | question 2, answer 2 ]
    segments          0 (no parent)     1 (parent 0)           2 (parent 0)

Axes: T positions of the stream, S scored positions, D datums, N positions of one datum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_train.losses import DistributionLoss, LossFunction
from crucible_train.types import Datum

NO_PARENT = -1
# Shorter shared prefixes are computed twice: attention over a parent costs more than a few tokens save.
MIN_SHARED_TOKENS = 16

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
    """One datum, cut after the last position that counts: what follows it is never computed."""

    index: int
    tokens_N: Ints
    places_S: Ints
    targets_S: Ints
    weights_S: npt.NDArray[np.float32]
    inputs_S: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


def scored(index: int, datum: Datum, function: LossFunction | DistributionLoss) -> Scored:
    """Take from a datum what the loss needs, at the positions that count.

    Raises:
        ValueError: the datum lacks an input of the loss, or the shape of one is not what the loss takes.
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
    )


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


def micro_batches(items: Sequence[Scored], max_tokens: int, *, share: bool = True) -> list[TokenStream]:
    """Lay sequences out as streams of at most ``max_tokens`` positions; a longer sequence gets a stream of its own.

    The order is fixed by the sequences alone: neighbours share the longest prefixes. Streams come out about equally
    long. Which sequences stand together changes nothing but rounding, since losses are sums.
    """
    ordered = [item for item in items if item.tokens_N.size]
    if share:
        ordered.sort(key=lambda item: item.tokens_N.astype(">i8").tobytes())
    lengths = [int(item.tokens_N.size) for item in ordered]
    costs = [
        length - _saving(left, right, share=share)
        for length, left, right in zip(lengths, [None, *ordered], ordered, strict=False)
    ]
    num_streams = max(1, -(-sum(costs) // max_tokens)) if max_tokens else len(ordered)
    target = sum(costs) / num_streams if ordered else 0
    groups: list[list[Scored]] = []
    size, slack = 0, 0
    for item, length, cost in zip(ordered, lengths, costs, strict=True):
        # Where prefixes of several lengths meet, what one has more than another may be too short for a segment.
        more = MIN_SHARED_TOKENS - 1 if cost < length else 0
        is_due = groups and size + cost <= max_tokens and size + cost / 2 <= target
        if is_due and (size + cost + slack + more <= max_tokens or _is_within([*groups[-1], item], max_tokens)):
            groups[-1].append(item)
            size += cost
            slack += more
        else:
            groups.append([item])
            size, slack = length, 0
    return [build_stream(group, share=share) for group in groups]


def _is_within(items: Sequence[Scored], max_tokens: int) -> bool:
    return build_stream(items).num_tokens <= max_tokens


def _saving(left: Scored | None, right: Scored, *, share: bool) -> int:
    """How many positions ``right`` need not compute after ``left``."""
    common = shared_prefix(left.tokens_N, right.tokens_N) if share and left is not None else 0
    return common if common >= MIN_SHARED_TOKENS else 0
