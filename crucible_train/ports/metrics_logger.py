"""The metrics port: where a run's numbers, texts, tables, pictures and artifacts go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from crucible_train import files

RunStatus = Literal["done", "failed", "interrupted"]
Cell = str | int | float | bool | None
SLOWEST_BYTES_A_SECOND = 256 << 10
"""An upload that is slower than this has stopped."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a logger is told of a run when it starts.

    Attributes:
        run_id: the name of the run directory.
        run_dir: that directory.
        config: the configuration, secrets removed.
        num_steps: optimizer steps of the whole run.
        first_step: finished steps; above 0 where the run goes on.
        tracker_id: what the run is called by trackers: the same as long as its directory lives, new in another one.
        name: what people read; empty for ``run_id``.
        project: the tracker's project or experiment.
        group: runs that belong together; empty for none.
        tags: words to find the run by.
        notes: a remark in words.
    """

    run_id: str
    run_dir: Path
    config: Mapping[str, Any]
    num_steps: int
    first_step: int
    tracker_id: str = ""
    name: str = ""
    project: str = "crucible-train"
    group: str = ""
    tags: Sequence[str] = ()
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a logger answers when a run starts.

    Attributes:
        url: where a person finds the run; None where there is no such page.
        last_step: the newest step of which the logger already holds the metrics; -1 for none.
        is_new: whether it holds nothing of the run at all, no settings either, so that everything is to be logged.
    """

    url: str | None = None
    last_step: int = -1
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class LoggedArtifact:
    """Something a run used or made.

    Attributes:
        name: such as ``adapter`` or ``gsm8k``.
        kind: ``dataset`` is described by digest and counts, its rows are never sent; the others are files.
        is_input: whether the run read it rather than wrote it.
        digest: SHA-256 of its content, in hexadecimal.
        path: the file or folder that holds it; None where it is described only.
        aliases: names for this version, such as ``latest``.
        facts: counts and the like, secrets removed.
    """

    name: str
    kind: Literal["dataset", "model", "report", "file"]
    is_input: bool
    digest: str
    path: Path | None = None
    aliases: Sequence[str] = ()
    facts: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def upload_s(self) -> float:
        """Seconds that sending its files may take."""
        return 0.0 if self.path is None else files.num_bytes(self.path) / SLOWEST_BYTES_A_SECOND


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run as a file of a tracker's client holds it.

    Attributes:
        run_id: what the client called it.
        project: the tracker's project.
        settings: the newest value of every setting.
        tags: words that were attached to it.
        steps: every step once, in order, and its finite metrics.
        num_left_out: numbers that are not finite.
    """

    run_id: str
    project: str
    settings: Mapping[str, Cell]
    tags: Sequence[str]
    steps: Sequence[tuple[int, Mapping[str, float]]]
    num_left_out: int


class LoggerUnavailable(Exception):
    """The service behind a logger does not take what it is sent now; it may later.

    Args:
        message: what happened, in a line without secrets.
        retry_after_s: seconds after which the service wishes to be asked again; None where it did not say.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        """Keep the wish of the service."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


@runtime_checkable
class MetricsLogger(Protocol):
    """Receives what a run reports.

    Invariants, which ``tests/contracts/test_metrics_logger_port.py`` holds every adapter to:

    - Metric names are ``area/name`` with an area of ``METRIC_AREAS``; values are finite numbers.
    - Steps never fall; a step may be logged in several parts.
    - A call returns before or after its content is safe; after ``flush`` it is safe.
    - ``start`` with the ``tracker_id`` of an earlier start goes on with the same run and says which steps it holds.
    - Nothing is logged after ``finish``, which may be called twice.
    - A service that cannot be reached raises ``LoggerUnavailable``; anything else raised is a fault of what was sent.
    """

    def start(self, run: RunInfo) -> Opened:
        """Learn of the run; called once, before anything is logged."""

    def log_hparams(self, values: Mapping[str, Cell]) -> None:
        """Record the settings of a run, ``section.field`` to value."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """Record a text, such as a sampled answer."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Record a table; every row has as many cells as there are columns."""

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a picture, a PNG file."""

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Record what a run used or made; the same digest under the same name is recorded once."""

    def link(self, name: str, url: str) -> None:
        """Record where a person finds something that belongs to the run."""

    def flush(self) -> None:
        """Return when everything logged so far is safe."""

    def finish(self, status: RunStatus) -> None:
        """Flush and let go."""


METRIC_AREAS = frozenset({"train", "optim", "reward", "sample", "eval", "time", "perf", "progress", "system"})
