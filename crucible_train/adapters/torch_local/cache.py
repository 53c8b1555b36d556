"""Keys and values of the rows that are being written, and attention of one query a row.

Each row has a place in a table for what is its own. Rows that go on from one prompt see its keys and values where they
are, once for all of them: their queries meet the prompt's keys in one product, the row's own keys in another, and one
softmax runs over both. A prompt that few rows share is copied into theirs, since a product of its own would cost more.

Axes: B rows, K key heads, G query heads of a key head, H = K G query heads, C columns of the table, P positions of a
prompt, E head width, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crucible_train.adapters.torch_local.attention import Scores
from crucible_train.adapters.torch_local.known import Layers

# The table grows by this factor, its columns to a multiple of this many.
_GROWTH = 1.5
_COLUMNS = 32
# A prompt is shared in place if that saves copies of at least this many positions.
_LEAST_SAVED = 128


@dataclass(slots=True, eq=False)
class Prompt:
    """Keys and values that several rows see where they are."""

    layers: Layers
    length: int


def is_shared(length: int, num_rows: int) -> bool:
    """Whether the rows of a prompt are to see it where it is, rather than copy it."""
    return (num_rows - 1) * length >= _LEAST_SAVED


class RowCache:
    """The table of the rows being written. Row ``b`` has ``own_B[b]`` positions in it, behind ``shared_B[b]`` others.

    It answers to the two methods that transformers' models call on a cache, ``update`` and ``get_seq_length``, and is
    the layout of a pass that adds one position a row.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """Tables are made when a layer first writes, in the shape it writes."""
        self._dtype = dtype
        self._device = device
        self._tables: list[tuple[Tensor, Tensor]] = []
        self._prompts: list[Prompt | None] = []
        self._groups: _Groups | None = None
        self._step: _Step | None = None
        self.own_B = torch.zeros(0, dtype=torch.long)
        self.shared_B = torch.zeros(0, dtype=torch.long)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._prompts)

    @property
    def positions(self) -> Tensor:
        """The position each row writes next, (B,)."""
        return self.own_B + self.shared_B

    @property
    def num_shared(self) -> int:
        """How many positions prompts have that rows see where they are."""
        return sum(prompt.length for prompt in {prompt for prompt in self._prompts if prompt is not None})

    def enter(self, prompt: Prompt, num_rows: int) -> None:
        """Add rows that go on from a prompt."""
        first, shares = len(self), is_shared(prompt.length, num_rows)
        self._prompts += [prompt if shares else None] * num_rows
        self.own_B = torch.cat([self.own_B, torch.full((num_rows,), 0 if shares else prompt.length)])
        self.shared_B = torch.cat([self.shared_B, torch.full((num_rows,), prompt.length if shares else 0)])
        self._groups = None
        if not self._tables:
            self._tables = [(_empty(keys), _empty(values)) for keys, values in prompt.layers]
        self._reserve()
        if not shares:
            for tables, layer in zip(self._tables, prompt.layers, strict=True):
                for table, found in zip(tables, layer, strict=True):
                    table[first : first + num_rows, :, : prompt.length] = found

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        last = len(self) - 1
        if row != last:
            num = int(self.own_B[last])
            for tables in self._tables:
                for table in tables:
                    table[row, :, :num] = table[last, :, :num]
            self._prompts[row] = self._prompts[last]
            self.own_B[row], self.shared_B[row] = self.own_B[last], self.shared_B[last]
        self._prompts.pop()
        self.own_B, self.shared_B = self.own_B[:last], self.shared_B[:last]
        self._groups = None

    def written(self, row: int, start: int) -> Layers:
        """A copy of what a row holds from position ``start`` of its sequence on."""
        skipped, end = start - int(self.shared_B[row]), int(self.own_B[row])
        return [
            (keys[row, :, skipped:end].clone(), values[row, :, skipped:end].clone()) for keys, values in self._tables
        ]

    def begin_step(self) -> None:
        """Prepare for one position a row."""
        self._reserve()
        if self._groups is None:
            self._groups = _Groups.of(self._prompts, self._device)
        self._step = _Step(self.own_B.to(self._device), self.shared_B.to(self._device), self._groups)

    def end_step(self) -> None:
        """Count the position that a step has added to every row."""
        self._step = None
        self.own_B = self.own_B + 1

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Take a layer's new keys and values, (B, K, 1, E); give those of the table that its queries are to see."""
        assert self._step is not None
        self._step.layer = layer
        seen = []
        for table, new in zip(self._tables[layer], (key, value), strict=True):
            num, heads, columns, width = len(new), *table.shape[1:]
            places = self._step.places(heads, columns)
            table.view(-1, width).index_copy_(0, places, new.reshape(num * heads, width).to(self._dtype))
            seen.append(table[:num, :, : self._step.num_columns])
        return seen[0], seen[1]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of shape (B, H, 1, E)."""
        assert self._step is not None
        return self._step.attend(query, key, value, scores)

    def get_seq_length(self, *_: object) -> int:
        """How many positions the longest row has."""
        return int(self.positions.max())

    def _reserve(self) -> None:
        """Make room for one more position a row."""
        if not self._tables:
            return
        rows, columns = len(self), int(self.own_B.max()) + 1
        has_rows, _, has_columns, _ = self._tables[0][0].shape
        if rows <= has_rows and columns <= has_columns:
            return
        if columns > has_columns:
            columns = max(columns, int(has_columns * _GROWTH))
            columns += -columns % _COLUMNS
        if rows > has_rows:
            rows = max(rows, int(has_rows * _GROWTH))
        rows, columns = max(rows, has_rows), max(columns, has_columns)
        self._tables = [(_grown(keys, rows, columns), _grown(values, rows, columns)) for keys, values in self._tables]


def _empty(layer: Tensor) -> Tensor:
    heads, _, width = layer.shape
    return layer.new_zeros(0, heads, 0, width)


def _grown(table: Tensor, rows: int, columns: int) -> Tensor:
    # zeros: what no query may see has no weight, but must be a number
    grown = table.new_zeros(rows, table.shape[1], columns, table.shape[3])
    grown[: table.shape[0], :, : table.shape[2]] = table
    return grown


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Which rows share which prompt.

    Attributes:
        prompts: each with the range of its rows in ``order``.
        order: the rows that share a prompt, those of each prompt together.
        place_B: where a row stands in ``order``; 0 for a row that shares none.
        is_in_order: whether ``order`` is simply all rows.
        length: of the longest prompt.
    """

    prompts: Sequence[tuple[Prompt, int, int]]
    order: Tensor
    place_B: Tensor
    is_in_order: bool
    length: int

    @classmethod
    def of(cls, prompts_B: Sequence[Prompt | None], device: torch.device) -> "_Groups":
        members: dict[Prompt, list[int]] = {}
        for row, prompt in enumerate(prompts_B):
            if prompt is not None:
                members.setdefault(prompt, []).append(row)
        order = [row for rows in members.values() for row in rows]
        places = [0] * len(prompts_B)
        for place, row in enumerate(order):
            places[row] = place
        prompts, start = [], 0
        for prompt, rows in members.items():
            prompts.append((prompt, start, start + len(rows)))
            start += len(rows)
        return cls(
            prompts,
            torch.tensor(order, dtype=torch.long, device=device),
            torch.tensor(places, dtype=torch.long, device=device),
            order == list(range(len(prompts_B))),
            max((prompt.length for prompt in members), default=0),
        )


class _Step:
    """One query a row, which sees its prompt and its own positions up to itself."""

    def __init__(self, own_B: Tensor, shared_B: Tensor, groups: _Groups) -> None:
        self.layer = 0
        self.num_columns = int(own_B.max()) + 1
        self._own_B, self._shared_B, self._groups = own_B, shared_B, groups
        self._places: dict[tuple[int, int], Tensor] = {}
        self._masks: dict[int | None, Tensor] = {}

    def places(self, heads: int, columns: int) -> Tensor:
        """Where the new positions stand in a table (B, K, C) laid out flat."""
        found = self._places.get((heads, columns))
        if found is None:
            rows = torch.arange(len(self._own_B) * heads, device=self._own_B.device).view(-1, heads)
            found = (rows * columns + self._own_B[:, None]).view(-1)
            self._places[heads, columns] = found
        return found

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of shape (B, H, 1, E)."""
        rows, heads, _, width = query.shape
        dtype = query.dtype
        query = query.reshape(rows, key.shape[1], heads // key.shape[1], width).to(key.dtype)
        logits = query @ key.transpose(2, 3)
        groups = self._groups
        if groups.prompts:
            logits = torch.cat([self._prompt_logits(query), logits], dim=3)
        logits = logits.float().mul_(scores.scale)
        if scores.softcap is not None:
            logits.div_(scores.softcap).tanh_().mul_(scores.softcap)
        logits.add_(self._mask(scores.window))
        if scores.sinks_H is not None:
            sinks = scores.sinks_H.float().view(1, key.shape[1], -1, 1).expand(*logits.shape[:3], 1)
            logits = torch.cat([logits, sinks], dim=3)
        probabilities = torch.softmax(logits, dim=3).to(value.dtype)
        start = groups.length
        out = probabilities[..., start : start + self.num_columns] @ value
        if groups.prompts:
            self._add_prompts(out, probabilities[..., :start])
        return out.to(dtype).view(rows, heads, 1, -1)

    def _prompt_logits(self, query: Tensor) -> Tensor:
        """Products with the keys of each row's prompt, (B, K, G, P); any number where it has no such key."""
        groups = self._groups
        num, (_, heads, group, width) = len(groups.order), query.shape
        ordered = query if groups.is_in_order else query.index_select(0, groups.order)
        ordered = ordered.transpose(0, 1).reshape(heads, num * group, width)
        found = query.new_zeros(heads, num * group, groups.length)
        for prompt, start, end in groups.prompts:
            keys = prompt.layers[self.layer][0]
            rows = slice(start * group, end * group)
            found[:, rows, : prompt.length] = ordered[:, rows] @ keys.transpose(1, 2)
        found = found.view(heads, num, group, groups.length).transpose(0, 1)
        return found if groups.is_in_order else found.index_select(0, groups.place_B)

    def _add_prompts(self, out: Tensor, probabilities: Tensor) -> None:
        """Add what each row takes from the values of its prompt."""
        groups = self._groups
        num, (_, heads, group, _) = len(groups.order), probabilities.shape
        ordered = probabilities if groups.is_in_order else probabilities.index_select(0, groups.order)
        ordered = ordered.transpose(0, 1).reshape(heads, num * group, groups.length)
        found = torch.cat(
            [
                ordered[:, start * group : end * group, : prompt.length] @ prompt.layers[self.layer][1]
                for prompt, start, end in groups.prompts
            ],
            dim=1,
        )
        found = found.view(heads, num, group, -1).transpose(0, 1)
        if groups.is_in_order:
            out.add_(found)
        else:
            out.index_add_(0, groups.order, found.contiguous())

    def _mask(self, window: int | None) -> Tensor:
        """0 where a row sees a column and -inf elsewhere, (B, 1, 1, P + C)."""
        if window not in self._masks:
            device = self._own_B.device
            shared, own = self._shared_B[:, None], self._own_B[:, None]
            prompt_columns = torch.arange(self._groups.length, device=device)
            columns = torch.arange(self.num_columns, device=device)
            is_seen = torch.cat([prompt_columns < shared, columns <= own], dim=1)
            if window is not None:
                positions = torch.cat([prompt_columns.expand(len(shared), -1), columns + shared], dim=1)
                is_seen &= positions > own + shared - window
            mask = torch.zeros(is_seen.shape, device=device).masked_fill_(~is_seen, float("-inf"))
            self._masks[window] = mask[:, None, None]
        return self._masks[window]
