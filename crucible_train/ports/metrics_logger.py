"""The metrics port: where a run's numbers go."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

RunStatus = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a logger is told of a run when it starts.

    Attributes:
        run_id: the name of the run directory.
        run_dir: that directory.
        config: the configuration, secrets removed.
        num_steps: optimizer steps of the whole run.
        first_step: finished steps; above 0 where the run goes on.
    """

    run_id: str
    run_dir: Path
    config: Mapping[str, Any]
    num_steps: int
    first_step: int


@runtime_checkable
class MetricsLogger(Protocol):
    """Receives what a run reports.

    Invariants, which ``tests/contracts/test_metrics_logger_port.py`` holds every adapter to:

    - Metric names are ``area/name`` with an area of ``METRIC_AREAS``; values are finite numbers.
    - Steps never fall; a step may be logged in several parts.
    - Nothing is logged after ``finish``, which may be called twice.
    """

    def start(self, run: RunInfo) -> None:
        """Learn of the run; called once, before anything is logged."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """Record a text, such as a sampled answer."""

    def finish(self, status: RunStatus) -> None:
        """Flush and let go."""


METRIC_AREAS = frozenset({"train", "optim", "reward", "sample", "eval", "time", "perf", "progress"})
