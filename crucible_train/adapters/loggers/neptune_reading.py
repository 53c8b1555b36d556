"""Reads back the file that Neptune's client writes offline."""

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import SET_OPERATION, UpdateRunSnapshot, Value

from crucible_train.ports import Cell, RecordedRun

FILE = "run_operations.sqlite3"

_SNAPSHOT = 0  # the kind of an operation that holds values
_MICRO = 1_000_000
_TAGS = "sys/tags"


def holds_anything(path: Path) -> bool:
    """Whether a database has the tables of Neptune's client and anything in them: a kill may come before either.

    Raises:
        ValueError: the file is no database.
    """
    wanted = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name IN ('metadata', 'run_operations')"
    held = "SELECT EXISTS (SELECT 1 FROM metadata) OR EXISTS (SELECT 1 FROM run_operations)"
    with _opened(path) as database:
        return database.execute(wanted).fetchone() == (2,) and database.execute(held).fetchone() == (1,)


def read_neptune_file(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Every step of a ``run_operations.sqlite3`` and its metrics, in the order they were written.

    Raises:
        ValueError: the file is no such database, or a step in it is not a whole number.
    """
    for snapshot in _snapshots(path):
        metrics = {
            name: value.float64 for name, value in snapshot.append.items() if value.WhichOneof("value") == "float64"
        }
        if not metrics:
            continue
        if snapshot.step.micro % _MICRO:
            raise ValueError(f"{path}: step {snapshot.step.whole}.{snapshot.step.micro:06} is not whole")
        yield snapshot.step.whole, metrics


def read_neptune_run(place: Path) -> RecordedRun:
    """All that the files at or under a place hold of one run.

    Raises:
        ValueError: there is none, one is no such database, they are of several runs, or a step is not whole.
    """
    files = [place] if place.is_file() else filter(holds_anything, place.rglob(FILE))
    begun = {path: _begun(path) for path in files}
    named = {(project, run_id) for _, project, run_id in begun.values()}
    if len(named) != 1:
        what = f"files of {len(named)} runs; name one of them" if named else f"no {FILE}"
        raise ValueError(f"{place} holds {what}")
    ((project, run_id),) = named
    joined: dict[int, dict[str, float]] = {}
    settings: dict[str, Cell] = {}
    tags: dict[str, None] = {}
    for path in sorted(begun, key=lambda path: begun[path]):  # a run that was begun again has a file for each time
        for step, metrics in read_neptune_file(path):
            joined.setdefault(step, {}).update(metrics)
        for snapshot in _snapshots(path):
            settings |= {name: _cell(value) for name, value in snapshot.assign.items()}
            for tag, change in snapshot.modify_sets[_TAGS].string.values.items():
                tags |= {tag: None} if change == SET_OPERATION.ADD else {}
                if change == SET_OPERATION.REMOVE:
                    tags.pop(tag, None)
    steps = [
        (step, {name: value for name, value in metrics.items() if math.isfinite(value)})
        for step, metrics in sorted(joined.items())
    ]
    num_left_out = sum(map(len, joined.values())) - sum(len(metrics) for _, metrics in steps)
    return RecordedRun(run_id, project, settings, sorted(tags), steps, num_left_out)


def _snapshots(path: Path) -> Iterator[UpdateRunSnapshot]:
    chosen = "SELECT operation FROM run_operations WHERE operation_type = ? ORDER BY sequence_id"
    with _opened(path) as database:
        for (operation,) in database.execute(chosen, (_SNAPSHOT,)):
            yield UpdateRunSnapshot.FromString(operation)


def _begun(path: Path) -> tuple[int, str, str]:
    """When a file was begun, in milliseconds, and the project and the id of its run."""
    with _opened(path) as database:
        found = database.execute("SELECT project, run_id FROM metadata").fetchone()
        (at,) = database.execute("SELECT MIN(timestamp) FROM run_operations").fetchone()
    if found is None:
        raise ValueError(f"{path} is not a file of Neptune's client: it names no run")
    return int(at or 0), str(found[0]), str(found[1])


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        try:
            yield database
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is not a file of Neptune's client: {error}") from error


def _cell(value: Value) -> Cell:
    """A setting; a set as JSON, a file by its path."""
    match value.WhichOneof("value"):
        case "float64" | "int64" | "bool" | "string" as kind:
            found: Cell = getattr(value, kind)
            return found
        case "string_set":
            return json.dumps(sorted(value.string_set.values), ensure_ascii=False)
        case "timestamp":
            return value.timestamp.ToJsonString()
        case "file_ref":
            return value.file_ref.path
        case kind:
            return f"({kind})"
