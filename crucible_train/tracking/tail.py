"""Reading files that grow, and that are replaced when a run goes on from a checkpoint."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from crucible_train import files
from crucible_train.journal import EVENTS_FILE, FOLDER
from crucible_train.metrics_file import METRICS_FILE, TIMINGS_FILE

Step = tuple[int, Mapping[str, float]]


class Tail:
    """The whole lines of a file, each once. A file that was replaced, or has become shorter, is read from its start.

    The file stays open, so that its number is not given to the one that takes its place.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet; the file need not exist."""
        self._path = path
        self._file: IO[bytes] | None = None
        self._offset = 0
        self._closing = ExitStack()

    def read(self) -> tuple[bool, list[bytes]]:
        """Whether earlier lines no longer count, and the lines that are new."""
        is_replaced = self._file is not None and self._has_changed(self._file)
        if is_replaced:
            self.close()
        if self._file is None:
            try:
                self._file = self._closing.enter_context(self._path.open("rb"))
            except FileNotFoundError:
                return is_replaced, []
        self._file.seek(self._offset)
        text = self._file.read()
        end = text.rfind(b"\n") + 1
        self._offset += end
        return is_replaced, text[:end].splitlines()

    def close(self) -> None:
        """Forget the file."""
        self._closing.close()
        self._file, self._offset = None, 0

    def _has_changed(self, file: IO[bytes]) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return True
        opened = os.fstat(file.fileno())
        return (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino) or now.st_size < self._offset


class StepFeed:
    """The steps of a run's two files, parts joined, in order, each as soon as nothing can be added to it."""

    def __init__(self, run_dir: Path) -> None:
        """Read nothing yet."""
        self._metrics = _Records(run_dir / METRICS_FILE)
        self._timings = _Records(run_dir / TIMINGS_FILE)

    def read(self, after: int, *, is_whole: bool) -> list[Step]:
        """The steps past ``after`` to which nothing will be added; with ``is_whole`` that is every step there is.

        The newest step of ``metrics.jsonl`` may still get parts. Timings are written after the metrics of their step
        and before those of the next, so they are read second.
        """
        self._metrics.read(after)
        self._timings.read(after)
        found = sorted({*self._metrics.pending, *self._timings.pending})
        steps = found if is_whole else [step for step in found if step < self._metrics.newest]
        metrics, timings = self._metrics.pending, self._timings.pending
        return [(step, {**metrics.get(step, {}), **timings.get(step, {})}) for step in steps]

    def close(self) -> None:
        """Forget the files."""
        self._metrics.tail.close()
        self._timings.tail.close()


class _Records:
    """What one of the files holds of the steps that are still to be sent."""

    def __init__(self, path: Path) -> None:
        self.tail = Tail(path)
        self.pending: dict[int, dict[str, float]] = {}
        self.newest = -1

    def read(self, after: int) -> None:
        is_replaced, lines = self.tail.read()
        if is_replaced:
            self.pending, self.newest = {}, -1
        for line in lines:
            record: dict[str, Any] = files.parse_json(line)
            step = int(record.pop("step"))
            self.newest = max(self.newest, step)
            self.pending.setdefault(step, {}).update(record)
        for step in [step for step in self.pending if step <= after]:
            del self.pending[step]


class EventFeed:
    """The journal's events, by their place in it."""

    def __init__(self, run_dir: Path) -> None:
        """Read nothing yet."""
        self._tail = Tail(run_dir / FOLDER / EVENTS_FILE)
        self._events: list[dict[str, Any]] = []

    def read(self, after: int) -> list[dict[str, Any]]:
        """The events past the first ``after``."""
        is_replaced, lines = self._tail.read()
        if is_replaced:
            self._events = []
        self._events += [files.parse_json(line) for line in lines]
        return self._events[after:]

    def close(self) -> None:
        """Forget the file."""
        self._tail.close()
