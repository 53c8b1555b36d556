"""However training ends, its file and its loggers hear of it, each whatever the other does."""

import asyncio
from pathlib import Path

import pytest

from crucible_train.errors import Interrupted, TrainingError
from crucible_train.metrics_file import MetricsFile, read_metrics
from crucible_train.stages import tracked


class Finished:
    """Takes down how it was finished."""

    def __init__(self) -> None:
        self.with_status: list[str] = []

    def finish(self, status: str) -> None:
        self.with_status.append(status)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingError("NaN"), "failed"),
        (MemoryError(), "failed"),
        (Interrupted(15), "interrupted"),
        (asyncio.CancelledError(), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_request_to_stop_is_no_failure(error: BaseException, status: str, tmp_path: Path) -> None:
    metrics, logger = MetricsFile(tmp_path), Finished()
    with pytest.raises(type(error)), tracked.ended(metrics, logger):  # type: ignore[arg-type]  # noqa: PT012
        metrics.log_metrics({"train/loss": 1.0}, 1)
        raise error
    assert logger.with_status == [status]
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]


def test_a_run_that_trained_to_its_end_is_done(tmp_path: Path) -> None:
    logger = Finished()
    with tracked.ended(MetricsFile(tmp_path), logger):  # type: ignore[arg-type]
        pass
    assert logger.with_status == ["done"]


def test_loggers_hear_that_the_last_step_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, logger = MetricsFile(tmp_path), Finished()

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics, "flush", full)
    with pytest.raises(OSError, match="No space left"), tracked.ended(metrics, logger):  # type: ignore[arg-type]
        pass
    assert logger.with_status == ["failed"], "not every step is in the file, so the run is not trained"
