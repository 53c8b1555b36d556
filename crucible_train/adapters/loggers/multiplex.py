"""Several loggers as one; none of them can stop a run."""

from collections.abc import Callable, Mapping, Sequence

from crucible_train.ports import MetricsLogger, RunInfo, RunStatus


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

    def start(self, run: RunInfo) -> None:
        """Tell every logger of the run."""
        self._each(lambda logger: logger.start(run))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step in every logger."""
        self._each(lambda logger: logger.log_metrics(metrics, step))

    def log_text(self, name: str, text: str, step: int) -> None:
        """Record a text in every logger."""
        self._each(lambda logger: logger.log_text(name, text, step))

    def finish(self, status: RunStatus) -> None:
        """Let every logger flush and let go."""
        self._each(lambda logger: logger.finish(status))

    def _each(self, call: Callable[[MetricsLogger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run goes on without it
                del self._loggers[name]
                self._report(f"logger {name} is dropped: {type(error).__name__}: {error}")
