"""Several loggers as one; none of them can stop a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crucible_train.ports import Cell, LoggedArtifact, MetricsLogger, Opened, RunInfo, RunStatus


class MultiplexLogger:
    """Passes everything on. A logger that raises is reported once and hears nothing more."""

    def __init__(self, loggers: Mapping[str, MetricsLogger], report: Callable[[str], None]) -> None:
        """Join loggers by name; ``report`` is told, in a line, of one that is dropped."""
        self._loggers = dict(loggers)
        self._report = report

    @property
    def names(self) -> Sequence[str]:
        """The loggers that still work."""
        return list(self._loggers)

    def start(self, run: RunInfo) -> Opened:
        """Tell every logger of the run."""
        self._each(lambda logger: logger.start(run))
        return Opened()

    def log_hparams(self, values: Mapping[str, Cell]) -> None:
        """Record the settings of a run in every logger."""
        self._each(lambda logger: logger.log_hparams(values))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step in every logger."""
        self._each(lambda logger: logger.log_metrics(metrics, step))

    def log_text(self, name: str, text: str, step: int) -> None:
        """Record a text in every logger."""
        self._each(lambda logger: logger.log_text(name, text, step))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Record a table in every logger."""
        self._each(lambda logger: logger.log_table(name, columns, rows, step))

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a picture in every logger."""
        self._each(lambda logger: logger.log_image(name, path, step))

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Record what a run used or made in every logger."""
        self._each(lambda logger: logger.log_artifact(artifact))

    def link(self, name: str, url: str) -> None:
        """Record an address in every logger."""
        self._each(lambda logger: logger.link(name, url))

    def flush(self) -> None:
        """Wait for every logger."""
        self._each(lambda logger: logger.flush())

    def finish(self, status: RunStatus) -> None:
        """Let every logger flush and let go."""
        self._each(lambda logger: logger.finish(status))

    def _each(self, call: Callable[[MetricsLogger], object]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run goes on without it
                del self._loggers[name]
                self._report(f"logger {name} is dropped: {type(error).__name__}: {error}")
