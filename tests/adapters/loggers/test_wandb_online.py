"""W&B online, against a service on this machine: every step once, in order, whatever stops and begins again."""

import itertools
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from crucible_train import wiring
from crucible_train.adapters.loggers.wandb_runs import WandbLogger
from crucible_train.errors import ConfigError
from crucible_train.ports import LoggedArtifact, LoggerUnavailable
from crucible_train.ports.metrics_logger import SLOWEST_BYTES_A_SECOND
from crucible_train.tracking.command import main
from tests.adapters.loggers.conftest import sync_offline
from tests.adapters.loggers.wandb_stub import StoredRun, impatient
from tests.conftest import ROOT


def log(logger: WandbLogger, steps: range) -> None:
    for step in steps:
        logger.log_metrics({"train/loss": step / 4}, step)
        logger.log_metrics({"perf/tokens_per_second": 8.0}, step)


def shown(run: StoredRun) -> list[tuple]:
    return [
        (line["_step"], line["train/loss"], line["perf/tokens_per_second"]) for _, line in sorted(run.history.items())
    ]


def expected(last: int) -> list[tuple]:
    return [(step, step / 4, 8.0) for step in range(1, last + 1)]


def test_every_step_arrives_once_in_order_and_flush_returns_when_it_has(service, run_info):
    run = run_info()
    logger = WandbLogger()
    opened = logger.start(run)
    assert opened.last_step == -1
    assert opened.url == f"{service.address}/tester/crucible-train/runs/{run.tracker_id}"
    logger.log_hparams({"optim.lr": 0.5})
    stored = service.runs[run.tracker_id]
    for first in (1, 3, 5):
        log(logger, range(first, first + 2))
        logger.flush()
        assert shown(stored) == expected(first + 1)
        assert not stored.exit_codes, "a flush does not end the run"
    logger.link("prefect", "http://127.0.0.1/flow")
    logger.finish("failed")
    logger.finish("failed")
    assert shown(stored) == expected(6)
    assert len(stored.lines) == 6
    assert stored.config["optim.lr"]["value"] == 0.5
    assert (stored.summary["train/loss"], stored.summary["link/prefect"]) == (1.5, "http://127.0.0.1/flow")
    assert stored.exit_codes == [1]
    assert not service.unknown


def test_a_run_begun_again_goes_on_after_the_step_the_service_holds(service, run_info):
    run, other = run_info(), run_info("other")
    for last, held in ((3, -1), (7, 3), (7, 7)):
        logger = WandbLogger()
        assert logger.start(run).last_step == held
        log(logger, range(1, last + 1))  # from the first step: the caller may know nothing of what was sent
        logger.finish("done")
    logger = WandbLogger()
    assert logger.start(other).last_step == -1, "another tracker_id is another run"
    log(logger, range(1, 3))
    logger.finish("done")
    assert shown(service.runs[run.tracker_id]) == expected(7)
    assert len(service.runs[run.tracker_id].lines) == 7
    assert shown(service.runs[other.tracker_id]) == expected(2)


def test_a_process_that_is_killed_leaves_what_it_flushed_and_the_next_one_sends_the_rest(service, run_info):
    run = run_info()
    script = f"""
import os, signal
from pathlib import Path
from crucible_train.adapters.loggers.wandb_runs import WandbLogger
from crucible_train.ports import RunInfo
from tests.adapters.loggers.test_wandb_online import log
logger = WandbLogger()
logger.start(RunInfo("run", Path({str(run.run_dir)!r}), {{}}, 9, 0, tracker_id={run.tracker_id!r}))
log(logger, range(1, 4))
logger.flush()
log(logger, range(4, 6))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == -9
    logger = WandbLogger()
    assert logger.start(run).last_step == 3
    log(logger, range(1, 7))
    logger.finish("done")
    assert shown(service.runs[run.tracker_id]) == expected(6)
    assert len(service.runs[run.tracker_id].lines) == 6


def test_a_service_that_stops_taking_steps_is_unavailable_and_gets_them_when_it_is_back(service, run_info):
    run = run_info()
    logger = WandbLogger()
    logger.start(run)
    log(logger, range(1, 3))
    logger.flush()
    service.refuse["file_stream"] = (503, "")
    log(logger, range(3, 5))
    with impatient(), pytest.raises(LoggerUnavailable, match="W&B"):
        logger.flush()
    service.refuse.clear()
    logger.flush()
    logger.finish("done")
    stored = service.runs[run.tracker_id]
    assert shown(stored) == expected(4)
    assert len(stored.lines) == 4, "no line came twice"


def test_files_are_waited_for_as_long_as_they_may_take(service, run_info, monkeypatch, tmp_path):
    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        os.truncate(file.fileno(), 100 * SLOWEST_BYTES_A_SECOND)
    waited: list[float] = []
    sent = SimpleNamespace(wait=lambda timeout: waited.append(timeout))
    monkeypatch.setattr("wandb.sdk.wandb_run.Run.log_artifact", lambda *_, **__: sent)
    monkeypatch.setattr("wandb.Artifact.add_file", lambda *_, **__: None)
    logger = WandbLogger()
    logger.start(run_info())
    logger.log_artifact(LoggedArtifact("small", "model", is_input=False, digest="cd" * 32, path=tmp_path / "none"))
    logger.log_artifact(LoggedArtifact("adapter", "model", is_input=False, digest="ab" * 32, path=weights))
    assert waited[1] - waited[0] == 100
    logger.finish("done")


def test_a_library_that_is_switched_off_reaches_nothing(service, run_info, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said: list[str] = []
    joined = wiring.metrics_logger(["wandb"], said.append)
    joined.start(run_info())
    joined.finish("done")
    assert said == ["wandb: WANDB_MODE=disabled, so nothing is sent there"]
    assert not (run_info().run_dir / "tracking").exists()
    assert wiring.tracker_names(["console", "wandb"]) == []
    with pytest.raises(ConfigError, match="switched off"):
        WandbLogger().start(run_info())
    (run_info().run_dir / "metrics.jsonl").write_text('{"step": 0, "train/loss": 1.0}\n')
    assert main(["export", str(run_info().run_dir), "--to", "wandb"]) == 2
    assert "error: --to: wandb: WANDB_MODE=disabled" in capsys.readouterr().err
    assert not service.operations


def test_an_offline_folder_is_sent_by_wandb_sync(service, run_info, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_info()
    logger = WandbLogger()
    logger.start(run)
    log(logger, range(1, 5))
    logger.finish("done")
    assert not service.operations, "offline reaches nothing"
    sync_offline(run)
    assert shown(service.runs[run.tracker_id]) == expected(4)


def waits(service, what: str) -> list[float]:
    """Seconds between requests of a kind."""
    came = [at for at, kind in service.requested if kind == what]
    return [later - earlier for earlier, later in itertools.pairwise(came)]


def take_after(service, what: str) -> None:
    """Let the service take everything once it has refused something of this kind."""

    def look() -> None:
        while not any(kind == what for _, kind in service.requested):
            time.sleep(0.005)
        service.refuse.clear()

    threading.Thread(target=look, daemon=True).start()


def test_a_wish_to_be_asked_later_is_honoured_by_the_library_itself(service, run_info):
    run = run_info()
    logger = WandbLogger()
    service.refuse["UpsertBucket"] = (429, "4")
    take_after(service, "UpsertBucket")
    logger.start(run)
    assert waits(service, "UpsertBucket")[0] >= 4
    service.requested.clear()
    service.refuse["file_stream"] = (429, "4")
    take_after(service, "file_stream")
    log(logger, range(1, 3))
    logger.flush()
    assert waits(service, "file_stream")[0] >= 4
    logger.finish("done")
    assert shown(service.runs[run.tracker_id]) == expected(2)


@pytest.mark.parametrize("what", ["graphql", "file_stream"])
def test_a_wish_that_is_longer_than_a_call_may_take_is_told_to_whoever_asks_again(what, service, run_info):
    logger = WandbLogger()
    if what == "file_stream":
        logger.start(run_info())
        log(logger, range(1, 3))
    service.refuse[what] = (429, "90")
    with impatient(), pytest.raises(LoggerUnavailable, match="W&B") as caught:
        logger.start(run_info()) if what == "graphql" else logger.flush()
    assert caught.value.retry_after_s == 90
    service.refuse.clear()
    again = WandbLogger()
    again.start(run_info())
    log(again, range(1, 3))
    again.finish("done")
    assert shown(service.runs[run_info().tracker_id]) == expected(2)
