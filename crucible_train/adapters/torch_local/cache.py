"""Keys and values of sequences that are being written.

Axes: B rows, K key heads, C positions, E head width, T positions of a stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crucible_train.adapters.torch_local.attention import Scores, attend_once
from crucible_train.adapters.torch_local.stream import NO_PARENT, Segment


class KeyValueCache:
    """A fixed table (B, K, C, E) a layer. A stream fills it once; after that every pass adds one position a row.

    It answers to the two methods that transformers' models call on a cache: ``update`` and ``get_seq_length``.
    """

    def __init__(self, num_rows: int, capacity: int, dtype: torch.dtype) -> None:
        """Tables are made when a layer first writes, in the shape it writes."""
        self._num_rows = num_rows
        self._capacity = capacity
        self._dtype = dtype
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._sources: Sequence[Sequence[tuple[int, slice, slice]]] = ()
        self.lengths_B = torch.zeros(num_rows, dtype=torch.long)

    def expect_stream(self, segments: Sequence[Segment], leaves: Sequence[tuple[int, int]]) -> None:
        """Prepare for a stream: each (row, segment) of ``leaves`` is filled with the segment and its ancestors."""
        sources = []
        for row, leaf in leaves:
            parts, index = [], leaf
            while index != NO_PARENT:
                segment = segments[index]
                parts.append(
                    (row, slice(segment.start, segment.end), slice(segment.offset, segment.offset + len(segment)))
                )
                index = segment.parent
            self.lengths_B[row] = segments[leaf].offset + len(segments[leaf])
            sources.append(parts)
        self._sources = sources

    def expect_step(self) -> None:
        """Prepare for one position a row."""
        self._sources = ()

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Take a layer's new keys and values; give what its queries are to see."""
        if layer == len(self._keys):
            shape = (self._num_rows, key.shape[1], self._capacity, key.shape[3])
            self._keys.append(torch.zeros(shape, dtype=self._dtype, device=key.device))
            self._values.append(torch.zeros((*shape[:3], value.shape[3]), dtype=self._dtype, device=key.device))
        keys, values = self._keys[layer], self._values[layer]
        if self._sources:
            for parts in self._sources:
                for row, taken, placed in parts:
                    keys[row, :, placed] = key[0, :, taken].to(self._dtype)
                    values[row, :, placed] = value[0, :, taken].to(self._dtype)
            return key, value
        rows = torch.arange(keys.shape[0], device=key.device)
        keys[rows, :, self.lengths_B] = key[:, :, 0].to(self._dtype)
        values[rows, :, self.lengths_B] = value[:, :, 0].to(self._dtype)
        num_seen = int(self.lengths_B.max()) + 1
        return keys[:, :, :num_seen], values[:, :, :num_seen]

    def advance(self) -> None:
        """Count the position that a step has added to every row."""
        # a finished row that still waits to be dropped may be full: it writes its last place again
        self.lengths_B.add_(1).clamp_(max=self._capacity - 1)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self._num_rows = len(rows)
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]
        self.lengths_B = self.lengths_B[rows]

    def get_seq_length(self, *_: object) -> int:
        """How many positions the longest row has."""
        return int(self.lengths_B.max())


@dataclass(frozen=True, slots=True)
class StepLayout:
    """One query a row, which sees its own row up to itself."""

    positions_B: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of shape (B, H, 1, E)."""
        columns = torch.arange(key.shape[2], device=query.device)
        is_seen = columns <= self.positions_B[:, None]
        if scores.window is not None:
            is_seen &= columns > self.positions_B[:, None] - scores.window
        return attend_once(query, key, value, scores, is_seen[:, None, None])
