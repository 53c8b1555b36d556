"""A run directory that fills as a run's does, the real follower beside it, and a tracker behind HTTP."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.adapters.loggers.replicated import ReplicatedLogger
from crucible_train.metrics_file import TIMINGS_FILE, MetricsFile, read_metrics
from crucible_train.ports import RunInfo

HTTP = "tests.tracking.http_tracker:HttpTracker"


class Run:
    """A run that trains nothing: it logs as ``TrainingRun`` does."""

    def __init__(self, run_dir: Path, trackers: tuple[str, ...] = (HTTP,), **options: Any) -> None:
        self.dir = run_dir
        self.metrics = MetricsFile(run_dir)
        self.logger = ReplicatedLogger(trackers, **{"report": lambda _: None} | options)

    def start(self, first_step: int = 0) -> None:
        self.logger.start(RunInfo("run", self.dir, {"seed": 0}, 100, first_step))

    def steps(self, first: int, last: int, pause_s: float = 0.0) -> None:
        for step in range(first, last + 1):
            values = {"train/loss": 1 / (step + 3), "time/step_s": 0.25 * step}
            if step % 5 == 0:
                values["eval/nll"] = 0.1 * step
            self.metrics.log_metrics(values, step)
            self.logger.log_metrics(values, step)
            time.sleep(pause_s)

    def finish(self, status: Any = "done") -> None:
        self.metrics.finish(status)
        self.logger.finish(status)


@pytest.fixture
def own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a module of a user's own where followers find it, by its name."""

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    return lambda *args, **options: Run(tmp_path / "run", *args, **options)


def truth(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """What a tracker must hold: both files of the run, joined."""
    found: dict[int, dict[str, float]] = {}
    for record in (*read_metrics(run_dir), *read_metrics(run_dir, TIMINGS_FILE)):
        found.setdefault(record.pop("step"), {}).update(record)
    return sorted(found.items())


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def cursor(run_dir: Path, name: str = "tests.tracking.http_tracker-HttpTracker") -> dict[str, Any]:
    path = run_dir / "tracking" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {"state": "new", "last_step": -1}
