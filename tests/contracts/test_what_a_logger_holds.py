"""After a flush it is safe, and the next logger of the run says so: over every tracker that keeps what it is told."""

import csv
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crucible_train.adapters.loggers.csv_file import CSVLogger
from crucible_train.adapters.loggers.tensorboard_events import TensorBoardLogger
from crucible_train.ports import MetricsLogger, RunInfo
from tests.adapters.loggers.conftest import make_run_info
from tests.adapters.loggers.wandb_stub import WandbStub

SETTINGS = {"seed": 7, "optim.lr": 0.5}
Steps = list[tuple[int, dict[str, float]]]


@dataclass(frozen=True)
class Kept:
    """A tracker, and what reads it back; None for what it has no place for."""

    make: Callable[[], MetricsLogger]
    steps: Callable[[RunInfo], Steps]
    settings: Callable[[RunInfo], Mapping[str, Any]] | None = None
    holds_text: Callable[[RunInfo], bool] | None = None
    holds_table: Callable[[RunInfo], bool] | None = None


def _by_step(curves: Mapping[str, list[tuple[int, float]]]) -> Steps:
    found: dict[int, dict[str, float]] = {}
    for name, points in curves.items():
        assert [step for step, _ in points] == sorted({step for step, _ in points}), "each once, in order"
        for step, value in points:
            found.setdefault(step, {})[name] = value
    return sorted(found.items())


@pytest.fixture
def csv_kept() -> Kept:
    def folder(run: RunInfo) -> Path:
        return run.run_dir / "tracking" / "csv" / run.tracker_id

    def steps(run: RunInfo) -> Steps:
        with (folder(run) / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        return [(int(row.pop("step")), {name: float(value) for name, value in row.items() if value}) for row in rows]

    return Kept(CSVLogger, steps, holds_table=lambda run: (folder(run) / "answers-2.csv").is_file())


@pytest.fixture
def tensorboard_kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)

    def read(run: RunInfo) -> Any:
        found = EventAccumulator(str(run.run_dir.parent / "tensorboard" / run.tracker_id), size_guidance={"scalars": 0})
        found.Reload()
        return found

    def steps(run: RunInfo) -> Steps:
        found = read(run)
        return _by_step({tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]})

    def settings(run: RunInfo) -> Mapping[str, Any]:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        told = read(run).PluginTagToContent("hparams")["_hparams_/session_start_info"]
        values = HParamsPluginData.FromString(told).session_start_info.hparams
        return {name: value.number_value for name, value in values.items()}

    def has_tag(name: str) -> Callable[[RunInfo], bool]:
        return lambda run: name in read(run).Tags()["tensors"]

    return Kept(TensorBoardLogger, steps, settings, has_tag("sample"), has_tag("answers"))


@pytest.fixture
def mlflow_kept(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    from crucible_train.adapters.loggers.mlflow_runs import MARKER, MlflowClient, MlflowLogger

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir(exist_ok=True)
    shutil.copyfile(migrated_database, tmp_path / "runs" / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")

    def read() -> Any:
        (found,) = client.search_runs([client.get_experiment_by_name("crucible-train").experiment_id])
        return found

    def steps(_: RunInfo) -> Steps:
        found = read()
        names = [name for name in found.data.metrics if name != MARKER]
        histories = {name: client.get_metric_history(found.info.run_id, name) for name in names}
        return _by_step({name: [(one.step, one.value) for one in history] for name, history in histories.items()})

    def settings(_: RunInfo) -> Mapping[str, Any]:
        return {name: float(value) for name, value in read().data.params.items()}

    def has_files(folder: str) -> Callable[[RunInfo], bool]:
        return lambda _: len(client.list_artifacts(read().info.run_id, folder)) == 1

    return Kept(MlflowLogger, steps, settings, has_files("texts/sample"), has_files("tables/answers"))


@pytest.fixture
def wandb_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """Online, against a stub of the service; it makes an artifact of a table, which the stub is not asked for here."""
    import wandb

    from crucible_train.adapters.loggers.wandb_runs import WandbLogger

    wandb.teardown()  # an earlier test may have left the library offline
    stub = WandbStub()
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", stub.address)

    def steps(run: RunInfo) -> Steps:
        stored = stub.runs[run.tracker_id]
        assert len(stored.lines) == len(stored.history), "no line came twice"
        lines = [line for _, line in sorted(stored.history.items())]
        return [(line["_step"], {name: line[name] for name in line if not name.startswith("_")}) for line in lines]

    def settings(run: RunInfo) -> Mapping[str, Any]:
        return {name: one["value"] for name, one in stub.runs[run.tracker_id].config.items() if name != "_wandb"}

    def holds_text(run: RunInfo) -> bool:
        return stub.runs[run.tracker_id].summary.get("sample") == "an answer"

    yield Kept(WandbLogger, steps, settings, holds_text)
    wandb.teardown()
    stub.stop()


@pytest.fixture
def trackio_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """In whatever folder the library has found when it was first imported here."""
    from crucible_train.adapters.loggers.trackio_runs import TrackioLogger

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))

    def storage() -> Any:
        from trackio.sqlite_storage import SQLiteStorage

        return SQLiteStorage

    def steps(run: RunInfo) -> Steps:
        rows = storage().get_logs(run.project, run_id=run.tracker_id)
        return [(row["step"], {name: row[name] for name in row if "/" in name}) for row in rows]

    def settings(run: RunInfo) -> Mapping[str, Any]:
        found: Mapping[str, Any] = storage().get_run_config(run.project, run.name or run.run_id, run_id=run.tracker_id)
        return found

    return Kept(TrackioLogger, steps, settings)


@pytest.fixture
def neptune_kept() -> Kept:
    from crucible_train.adapters.loggers.neptune_file import NeptuneLogger
    from crucible_train.adapters.loggers.neptune_reading import read_neptune_file

    def files(run: RunInfo) -> list[Path]:
        folder = run.run_dir.parent / "neptune" / run.tracker_id
        return sorted(folder.glob("*/run_operations.sqlite3"), key=lambda path: path.stat().st_ctime_ns)

    def steps(run: RunInfo) -> Steps:
        return [step for file in files(run) for step in read_neptune_file(file)]

    def settings(run: RunInfo) -> Mapping[str, Any]:
        import sqlite3
        from contextlib import closing

        from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import UpdateRunSnapshot

        found: dict[str, Any] = {}
        for file in files(run):
            with closing(sqlite3.connect(file)) as database:
                for (operation,) in database.execute("SELECT operation FROM run_operations WHERE operation_type = 0"):
                    for name, value in UpdateRunSnapshot.FromString(operation).assign.items():
                        found[name] = getattr(value, str(value.WhichOneof("value")))
        return found

    return Kept(NeptuneLogger, steps, settings)


KINDS = ("csv", "tensorboard", "mlflow", "wandb", "trackio", "neptune")


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest) -> Kept:
    found: Kept = request.getfixturevalue(f"{request.param}_kept")
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunInfo:
    return make_run_info(tmp_path, tracker_id=f"run-{tmp_path.parent.name}-{tmp_path.name}"[-60:])


def values(step: int) -> dict[str, float]:
    return {"train/loss": step / 4, "perf/tokens_per_second": 8.0}  # as float32 too


def test_what_is_flushed_is_held_and_the_next_logger_of_the_run_says_so(kept: Kept, run: RunInfo) -> None:
    logger = kept.make()
    assert logger.start(run).last_step == -1
    logger.log_hparams(SETTINGS)
    for step in (1, 2, 3):
        for name, value in values(step).items():
            logger.log_metrics({name: value}, step)
        if step == 2:
            logger.log_text("sample", "an answer", 2)
            if kept.holds_table is not None:
                logger.log_table("answers", ["a"], [["b"]], 2)
    logger.flush()
    assert kept.steps(run) == [(step, values(step)) for step in (1, 2, 3)]
    if kept.settings is not None:
        assert SETTINGS.items() <= kept.settings(run).items()
    assert kept.holds_text is None or kept.holds_text(run)
    assert kept.holds_table is None or kept.holds_table(run)

    again = kept.make()  # as after a kill: the first one is not finished
    assert again.start(run).last_step == 3
    for step in (4, 5):
        again.log_metrics(values(step), step)
    again.finish("done")
    assert kept.steps(run) == [(step, values(step)) for step in range(1, 6)]
    last = kept.make()
    assert last.start(run).last_step == 5
    assert kept.holds_text is None or kept.holds_text(run)
    last.finish("done")
    logger.finish("done")


def test_settings_are_held_without_a_step_and_by_a_run_that_goes_on(kept: Kept, run: RunInfo) -> None:
    if kept.settings is None:
        pytest.skip("it has no place for settings")
    logger = kept.make()
    logger.start(run)
    logger.log_hparams(SETTINGS)
    logger.flush()
    again = kept.make()
    opened = again.start(run)
    assert opened.last_step == -1
    if opened.is_new:  # it holds nothing without a step, and says so: then all is sent again
        again.log_hparams(SETTINGS)
    else:
        assert SETTINGS.items() <= kept.settings(run).items()
    again.log_metrics(values(1), 1)
    again.finish("done")
    assert SETTINGS.items() <= kept.settings(run).items()
    assert kept.steps(run) == [(1, values(1))]
    logger.finish("done")


def test_another_run_holds_nothing_of_this_one(kept: Kept, run: RunInfo, tmp_path: Path) -> None:
    logger = kept.make()
    logger.start(run)
    logger.log_metrics(values(1), 1)
    logger.finish("done")
    other = make_run_info(tmp_path, "other", tracker_id=f"{run.tracker_id}-other")
    logger = kept.make()
    assert logger.start(other).last_step == -1
    logger.finish("done")
