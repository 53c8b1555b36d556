"""The metrics port: where a run's numbers go."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

RunStatus = Literal["done", "failed", "interrupted"]


@runtime_checkable
class MetricsLogger(Protocol):
    """Receives what a run reports.

    Invariants, which ``tests/contracts/test_metrics_logger_port.py`` holds every adapter to:

    - Metric names are ``area/name`` with an area of ``METRIC_AREAS``; values are finite numbers.
    - Steps never fall; a step may be logged in several parts.
    - Nothing is logged after ``finish``, which may be called twice.
    """

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """Record the configuration, as it was redacted."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """Record a text, such as a sampled answer."""

    def finish(self, status: RunStatus) -> None:
        """Flush and let go."""


METRIC_AREAS = frozenset({"train", "optim", "reward", "sample", "eval", "time", "perf", "progress"})
