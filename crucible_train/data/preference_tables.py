"""What is kept of preferences between the stages: as messages, then as tokens, in memory-mapped Arrow files.

Axes: T tokens of a side.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crucible_train.data.tables import ROWS_A_BATCH, Table, column, list_column, view, write_table
from crucible_train.errors import DataError
from crucible_train.types import Message, Preference, conversation

_STORED = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected", "tools", "where")])
_SIDES = ("chosen", "rejected")
_RENDERED = pa.schema(
    [
        *((f"{side}_tokens", pa.list_(pa.int32())) for side in _SIDES),
        *((f"{side}_weights", pa.list_(pa.float32())) for side in _SIDES),
        ("row", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class StoredPreference:
    """A preference as it is written: JSON texts, None where there is nothing, and the place it came from."""

    prompt: str
    chosen: str | None
    rejected: str | None
    tools: str | None
    where: str

    @classmethod
    def of(cls, preference: Preference, where: str) -> "StoredPreference":
        """Write a preference as text.

        Raises:
            DataError: it holds a value that JSON has no form for.
        """

        def text(messages: Sequence[Message]) -> str:
            return json.dumps([message.to_dict() for message in messages], ensure_ascii=False)

        try:
            chosen, rejected = (
                text(side) if side is not None else None for side in (preference.chosen, preference.rejected)
            )
            tools = json.dumps(preference.tools, ensure_ascii=False) if preference.tools else None
            return cls(text(preference.prompt), chosen, rejected, tools, where)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"a value cannot be stored as JSON: {error}") from error


def write_preferences(path: Path, preferences: Iterable[StoredPreference]) -> int:
    """Write preferences; how many there were."""

    def batches() -> Iterator[pa.RecordBatch]:
        iterator = iter(preferences)
        while rows := list(islice(iterator, ROWS_A_BATCH)):
            columns = [[getattr(row, name) for row in rows] for name in _STORED.names]
            yield pa.record_batch([pa.array(some, pa.string()) for some in columns], schema=_STORED)

    return write_table(path, _STORED, batches())


class Preferences(Table):
    """Preferences by number."""

    def __getitem__(self, index: int) -> Preference:
        """The preference of a row."""
        batch, place = self._place(index)
        texts = [batch.column(name)[place].as_py() for name in ("prompt", *_SIDES)]
        prompt, chosen, rejected = (None if text is None else conversation(json.loads(text)) for text in texts)
        tools = batch.column("tools")[place].as_py()
        assert prompt is not None
        return Preference(prompt, chosen, rejected, tuple(json.loads(tools)) if tools is not None else ())

    def where(self, index: int) -> str:
        """The place a row came from."""
        batch, place = self._place(index)
        return str(batch.column("where")[place].as_py())

    def prompts(self) -> list[tuple[str, str | None]]:
        """The prompt and the tools of every row, as they are stored."""
        names = ("prompt", "tools")
        parts = [zip(*(batch.column(name).to_pylist() for name in names), strict=True) for batch in self._batches]
        return [row for part in parts for row in part]


@dataclass(frozen=True, slots=True)
class Side:
    """One rendered sequence: ids (int32), and how much each counts as a target (float32, unshifted)."""

    tokens_T: npt.NDArray[np.int32]
    weights_T: npt.NDArray[np.float32]

    @property
    def num_prompt(self) -> int:
        """How many tokens stand before the completion's first that counts."""
        return int(np.flatnonzero(self.weights_T)[0])


@dataclass(frozen=True, slots=True)
class RenderedPreference:
    """Both sides of a pair, or one alone; ``row`` is the preference they come from."""

    chosen: Side | None
    rejected: Side | None
    row: int

    @property
    def sides(self) -> tuple[tuple[int, Side], ...]:
        """What is there, with 1 for a chosen and -1 for a rejected side."""
        both = ((1, self.chosen), (-1, self.rejected))
        return tuple((number, side) for number, side in both if side is not None)


def write_rendered(path: Path, preferences: Iterable[RenderedPreference]) -> int:
    """Write rendered preferences; how many there were."""

    def batches() -> Iterator[pa.RecordBatch]:
        iterator = iter(preferences)
        while rows := list(islice(iterator, ROWS_A_BATCH)):
            sides = [[row.chosen for row in rows], [row.rejected for row in rows]]
            columns: list[Any] = [list_column([_tokens(one) for one in some], pa.int32()) for some in sides]
            columns += [list_column([_weights(one) for one in some], pa.float32()) for some in sides]
            columns.append(column(np.array([row.row for row in rows], np.int64), pa.int64()))
            yield pa.record_batch(columns, schema=_RENDERED)

    return write_table(path, _RENDERED, batches())


class RenderedPreferences(Table):
    """Rendered preferences by number; tokens and weights are views of the mapped file."""

    def __getitem__(self, index: int) -> RenderedPreference:
        """One preference."""
        batch, place = self._place(index)

        def side(name: str) -> Side | None:
            tokens = view(batch.column(f"{name}_tokens"), place)
            return Side(tokens, view(batch.column(f"{name}_weights"), place)) if tokens.size else None

        return RenderedPreference(side("chosen"), side("rejected"), batch.column("row")[place].as_py())

    def __iter__(self) -> Iterator[RenderedPreference]:
        """All in order."""
        return (self[index] for index in range(len(self)))


def _tokens(side: Side | None) -> npt.NDArray[np.int32]:
    return np.zeros(0, np.int32) if side is None else side.tokens_T


def _weights(side: Side | None) -> npt.NDArray[np.float32]:
    return np.zeros(0, np.float32) if side is None else side.weights_T
