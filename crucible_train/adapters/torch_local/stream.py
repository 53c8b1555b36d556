"""The one data layout: a flat stream of tokens cut into segments.

A segment is a stretch of one sequence. It may continue another one, its *parent*, whose tokens it then sees as if they
stood before it; several segments may share a parent. So no position is padding, a prompt that several sequences share
is computed once, and supervised examples, preference pairs and groups of rollouts are the same forward pass.

    tokens_T      [ system prompt | question 1, answer 1 | question 2, answer 2 ]
    segments          0 (no parent)     1 (parent 0)           2 (parent 0)

Axes: T positions of the stream, S scored positions, D datums, N positions of one datum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

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
        targets_S: what it is to predict.
        weights_S: how much that counts.
        datum_S: which datum the score belongs to.
        place_S: at which of the datum's positions.
    """

    tokens_T: Ints
    positions_T: Ints
    segments: tuple[Segment, ...]
    rows_S: Ints
    targets_S: Ints
    weights_S: npt.NDArray[np.float32]
    datum_S: Ints
    place_S: Ints

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


def scored(index: int, datum: Datum) -> Scored:
    """Take from a datum what the loss needs: targets and weights at the positions whose weight is not 0.

    Raises:
        ValueError: the datum lacks targets or weights, or they do not have one axis.
    """
    try:
        targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
        weights = datum.loss_fn_inputs["weights"].to_numpy()
    except KeyError as missing:
        raise ValueError(f"datum {index} has no {missing}") from None
    if targets.ndim != 1 or weights.ndim != 1:
        raise ValueError(f"datum {index}: target_tokens and weights must have shape (N,)")
    places = np.flatnonzero(weights)
    end = int(places[-1]) + 1 if places.size else 0
    tokens = datum.model_input.to_array()[:end].astype(np.int64)
    return Scored(
        index, tokens, places, targets[places].astype(np.int64), weights[places].astype(np.float32, copy=False)
    )


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
            targets_S=_joined([item.targets_S for item in items]),
            weights_S=np.concatenate([item.weights_S for item in items]).astype(np.float32),
            datum_S=_joined([np.full(item.places_S.size, item.index) for item in items]),
            place_S=_joined([item.places_S for item in items]),
        )

    def _segment(self, items: Sequence[Scored], begin: int, end: int, parent: int) -> int:
        start = self.num_tokens
        self.num_tokens += end - begin
        self.tokens.append(items[0].tokens_N[begin:end])
        self.segments.append(Segment(start, self.num_tokens, parent, begin))
        for item in items:
            self.rows[item.index].append(np.arange(start, self.num_tokens))
        return len(self.segments) - 1


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
