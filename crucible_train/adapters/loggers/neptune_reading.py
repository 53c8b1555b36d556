"""Reads back the file that Neptune's client writes offline."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import UpdateRunSnapshot

_SNAPSHOT = 0  # the kind of an operation that holds values
_MICRO = 1_000_000


def read_neptune_file(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Every step of a ``run_operations.sqlite3`` and its metrics, in the order they were written.

    Raises:
        ValueError: the file is no such database, or a step in it is not a whole number.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        chosen = "SELECT operation FROM run_operations WHERE operation_type = ? ORDER BY sequence_id"
        try:
            for (operation,) in database.execute(chosen, (_SNAPSHOT,)):
                snapshot = UpdateRunSnapshot.FromString(operation)
                metrics = {
                    name: value.float64
                    for name, value in snapshot.append.items()
                    if value.WhichOneof("value") == "float64"
                }
                if not metrics:
                    continue
                if snapshot.step.micro % _MICRO:
                    raise ValueError(f"{path}: step {snapshot.step.whole}.{snapshot.step.micro:06} is not whole")
                yield snapshot.step.whole, metrics
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is not a file of Neptune's client: {error}") from error
