"""The log-probabilities that the model before training gives to every completion: found once, kept, read from there.

Axes: S positions of a sequence that count, N all of them.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crucible_train.data.preference_tables import RenderedPreference, Side
from crucible_train.data.tables import Table, list_column, view, write_table
from crucible_train.ports import TrainingClient
from crucible_train.preference.datums import mismatched, side_datum
from crucible_train.types import CrossEntropy

Floats = npt.NDArray[np.float32]
_NAMES = ("chosen", "rejected", "mismatched")
_SCHEMA = pa.schema([(name, pa.list_(pa.float32())) for name in _NAMES])
_PREFERENCES_A_PASS = 64


@dataclass(frozen=True, slots=True)
class ReferenceLogprobs:
    """Of one preference, (S,) for each sequence that there is: both sides, and the mismatched one where it is read."""

    chosen: Floats | None
    rejected: Floats | None
    mismatched: Floats | None

    def of_side(self, number: int) -> Floats | None:
        """Of the chosen side for 1, of the rejected one for -1."""
        return self.chosen if number > 0 else self.rejected


async def computed(
    client: TrainingClient,
    preferences: Sequence[RenderedPreference],
    *,
    with_mismatched: bool,
    has_adapter: bool = True,
) -> AsyncIterator[ReferenceLogprobs]:
    """What the client's model before training gives to each preference, in order: its adapter is off, if it has one."""
    for start in range(0, len(preferences), _PREFERENCES_A_PASS):
        sequences: list[tuple[int, str, Side]] = []
        for index in range(start, min(start + _PREFERENCES_A_PASS, len(preferences))):
            found = {"chosen": preferences[index].chosen, "rejected": preferences[index].rejected}
            if with_mismatched:
                found["mismatched"] = mismatched(preferences, index)
            sequences += [(index, name, side) for name, side in found.items() if side is not None]
        datums = [side_datum(side) for _, _, side in sequences]
        output = await client.forward(datums, CrossEntropy(), with_adapter=not has_adapter)
        rows: dict[int, dict[str, Floats]] = {}
        for (index, name, side), logprobs_N in zip(sequences, output.logprobs_D, strict=True):
            rows.setdefault(index, {})[name] = logprobs_N[side.weights_T[1:] != 0]
        for row in rows.values():
            yield ReferenceLogprobs(*(row.get(name) for name in _NAMES))


def write_reference(path: Path, rows: Iterable[ReferenceLogprobs]) -> int:
    """Write them, one row a preference; how many there were."""
    empty = np.zeros(0, np.float32)
    parts = [[getattr(row, name) for row in rows] for rows in [list(rows)] for name in _NAMES]
    columns = [list_column([empty if one is None else one for one in part], pa.float32()) for part in parts]
    return write_table(path, _SCHEMA, [pa.record_batch(columns, schema=_SCHEMA)])


class ReferenceTable(Table):
    """The kept log-probabilities by the number of their preference; views of the mapped file."""

    def __getitem__(self, index: int) -> ReferenceLogprobs:
        """Those of one preference."""
        batch, place = self._place(index)
        found = (view(batch.column(name), place) for name in _NAMES)
        return ReferenceLogprobs(*(one if one.size else None for one in found))
