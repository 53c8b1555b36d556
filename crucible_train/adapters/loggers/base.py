"""What a logger does with what it has no place for: nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from crucible_train.ports import Cell, LoggedArtifact, Opened, RunInfo, RunStatus


class QuietLogger:
    """Takes everything and keeps none of it; an adapter overrides what its service has a place for."""

    flush_every_s = 0.0
    """Seconds a follower lets pass between two flushes while the run goes on; for a service whose flush is dear."""

    def start(self, run: RunInfo) -> Opened:
        """Nothing is opened."""
        return Opened()

    def log_hparams(self, values: Mapping[str, Cell]) -> None:
        """Not kept."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Not kept."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """Not kept."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Not kept."""

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Not kept."""

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Not kept."""

    def link(self, name: str, url: str) -> None:
        """Not kept."""

    def flush(self) -> None:
        """Nothing is waiting."""

    def finish(self, status: RunStatus) -> None:
        """Nothing is open."""
