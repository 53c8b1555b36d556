"""The run's own record of its numbers: one JSON object a step.

``metrics.jsonl`` holds what is the same in every run of the same configuration, so two runs can be compared bit for
bit; ``timings.jsonl`` beside it holds what is not: the areas ``time``, ``perf`` and ``system``. Other loggers are
copies of these.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.ports import METRIC_AREAS, RunStatus

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
_UNREPEATABLE_AREAS = frozenset({"time", "perf", "system"})


class MetricsFile:
    """Writes the two files of a run directory, and rewinds them when a run goes on from a checkpoint.

    A step is written when the next one begins, or on ``flush``; parts of one step become one object.
    """

    def __init__(self, run_dir: Path) -> None:
        """Open the files of a run directory, where they exist at their end."""
        self.path = run_dir / METRICS_FILE
        self._timings_path = run_dir / TIMINGS_FILE
        self._step: int | None = None
        self._pending: dict[str, float] = {}
        run_dir.mkdir(parents=True, exist_ok=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step.

        Raises:
            ValueError: a name has no known area, a value is not a finite number, or the step is in the past.
        """
        for name, value in metrics.items():
            if name.partition("/")[0] not in METRIC_AREAS:
                raise ValueError(f"metric {name!r}: its area is none of {', '.join(sorted(METRIC_AREAS))}")
            if not math.isfinite(value):
                raise ValueError(f"metric {name!r} is {value} at step {step}")
        if self._step is not None and step < self._step:
            raise ValueError(f"step {step} is logged after step {self._step}")
        if step != self._step:
            self.flush()
            self._step = step
        self._pending |= metrics

    def flush(self) -> None:
        """Write the step that is pending."""
        if self._pending:
            timings = {k: v for k, v in self._pending.items() if k.partition("/")[0] in _UNREPEATABLE_AREAS}
            metrics = {k: v for k, v in self._pending.items() if k not in timings}
            self._append(self.path, metrics)
            self._pending = timings  # should writing these fail, the metrics are not written twice
            self._append(self._timings_path, timings)
            self._pending = {}

    def finish(self, status: RunStatus) -> None:
        """Write what is pending."""
        self.flush()

    def contents(self) -> bytes:
        """All of ``metrics.jsonl``, for a checkpoint to keep."""
        self.flush()
        return self.path.read_bytes() if self.path.is_file() else b""

    def rewind(self, step: int, contents: bytes) -> None:
        """Go back to a checkpoint: its ``metrics.jsonl``, and of the timings what is not after ``step``."""
        files.write_bytes(self.path, contents)
        kept = [line for line in _lines(self._timings_path) if _step_of(line) <= step]
        files.write_text(self._timings_path, "".join(line + "\n" for line in kept))
        self._step, self._pending = None, {}

    def _append(self, path: Path, values: Mapping[str, float]) -> None:
        if values:
            record = {"step": self._step, **dict(sorted(values.items()))}
            files.append_line(path, json.dumps(record, allow_nan=False))


def read_metrics(run_dir: Path, file: str = METRICS_FILE) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a torn last line is left out."""
    return [json.loads(line) for line in _lines(run_dir / file) if _step_of(line) < math.inf]


def last_step(run_dir: Path) -> int:
    """The newest step that a run has recorded; -1 before the first."""
    return max((record["step"] for record in read_metrics(run_dir)), default=-1)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _step_of(line: str) -> float:
    """The step of a record; infinity where the line is torn."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
