"""What every metrics logger bears: any valid sequence of a run's reports, and two endings."""

import shutil

import pytest

from crucible_train import wiring
from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.adapters.loggers.console import ConsoleLogger
from crucible_train.adapters.loggers.csv_file import CSVLogger
from crucible_train.adapters.loggers.multiplex import MultiplexLogger
from crucible_train.adapters.loggers.replicated import ReplicatedLogger
from crucible_train.adapters.loggers.tensorboard_events import TensorBoardLogger
from crucible_train.ports import METRIC_AREAS, MetricsLogger, RunInfo
from crucible_train.ports.conforming import conforming


def _mlflow(request) -> MetricsLogger:
    from crucible_train.adapters.loggers.mlflow_runs import MlflowLogger

    folder = request.getfixturevalue("tmp_path")
    shutil.copyfile(request.getfixturevalue("migrated_database"), folder / "mlflow.db")
    return MlflowLogger()


def _wandb(request) -> MetricsLogger:
    from crucible_train.adapters.loggers.wandb_runs import WandbLogger

    request.getfixturevalue("monkeypatch").setenv("WANDB_MODE", "offline")
    return WandbLogger()


def _neptune(_) -> MetricsLogger:
    from crucible_train.adapters.loggers.neptune_file import NeptuneLogger

    return NeptuneLogger()


MADE = {
    "console": lambda _: ConsoleLogger(),
    "multiplex": lambda _: MultiplexLogger({"console": ConsoleLogger(), "quiet": QuietLogger()}, pytest.fail),
    "mlflow": _mlflow,
    "replicated": lambda _: ReplicatedLogger(["csv"], report=pytest.fail, start_follower=lambda *_: None),
    "csv": lambda _: CSVLogger(),
    "tensorboard": lambda _: TensorBoardLogger(),
    "wandb": _wandb,
    "neptune": _neptune,
}


@pytest.fixture(params=MADE)
def logger(request, monkeypatch) -> MetricsLogger:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return conforming(MADE[request.param](request), MetricsLogger, request.param)


def run_info(tmp_path, num_steps=16, first_step=0) -> RunInfo:
    return RunInfo("run", tmp_path / "run", {"seed": 0, "password": None}, num_steps, first_step)


def contents(folder) -> dict:
    # W&B's process goes on writing its own debug log for some milliseconds after a run is finished
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}


def test_every_area_alone_may_be_reported(logger, tmp_path):
    logger.start(run_info(tmp_path))
    for step, area in enumerate(sorted(METRIC_AREAS), start=1):
        logger.log_metrics({f"{area}/loss": 0.5}, step)
    logger.finish("done")


def test_a_step_may_come_in_parts_and_steps_may_be_left_out(logger, tmp_path):
    logger.start(run_info(tmp_path))
    logger.log_metrics({"eval/nll": 2.0}, 0)
    logger.log_metrics({"train/loss": 1.0, "optim/learning_rate": 1e-4}, 3)
    logger.log_metrics({"perf/tokens_per_second": 9.0}, 3)
    logger.log_metrics({}, 3)
    logger.log_metrics({"train/loss": 0.0, "optim/learning_rate": 0.0}, 16)
    logger.finish("done")


def test_a_run_may_go_on_where_it_stopped(logger, tmp_path):
    logger.start(run_info(tmp_path, first_step=15))
    logger.log_metrics({"train/loss": 1.0}, 16)
    logger.finish("done")


def test_a_run_of_no_further_steps_may_be_reported(logger, tmp_path):
    logger.start(run_info(tmp_path, first_step=16))
    logger.finish("done")


def test_a_text_may_hold_anything(logger, tmp_path):
    logger.start(run_info(tmp_path))
    for text in ("", "[bold]not markup[/]", "\x1b[31m", "é\u2028\n𝄞"):
        logger.log_text("sample", text, 1)
    logger.finish("done")


@pytest.mark.parametrize("status", ["done", "failed", "interrupted"])
def test_a_run_may_be_finished_twice_and_the_second_time_adds_nothing(logger, tmp_path, capsys, status):
    logger.start(run_info(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.finish(status)
    before = contents(tmp_path)
    capsys.readouterr()
    logger.finish(status)
    assert contents(tmp_path) == before
    assert capsys.readouterr() == ("", "")


def test_a_run_that_failed_before_its_first_report_may_be_finished(logger, tmp_path):
    logger.start(run_info(tmp_path))
    logger.finish("failed")


def test_the_configured_loggers_are_joined_and_an_unknown_name_is_answered_with_those_known(tmp_path):
    from crucible_train.errors import ConfigError

    joined = wiring.metrics_logger(list(wiring.LOGGERS), pytest.fail)
    joined.start(run_info(tmp_path))
    joined.finish("done")
    with pytest.raises(ConfigError, match="report_to: 'consol' is unknown; known are auto, console, csv"):
        wiring.metrics_logger(["consol"], pytest.fail)
