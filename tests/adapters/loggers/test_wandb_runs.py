"""W&B offline: the file beside the run holds every metric once, in order; a service that is absent is unavailable."""

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from crucible_train.adapters.loggers.wandb_runs import WandbLogger
from crucible_train.ports import LoggerUnavailable


@pytest.fixture(autouse=True)
def own_library():
    """The library reads its environment once; every test has its own."""
    import wandb

    yield
    wandb.teardown()


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)


def records(data: bytes) -> Iterator[bytes]:
    """A run's file is a LevelDB log: a header of 7 bytes, blocks of 32 KiB, records of crc, length, type and data."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def history(file: Path) -> list[dict]:
    from wandb.proto import wandb_internal_pb2

    steps = []
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            steps.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return steps


def test_offline_runs_begun_again_are_rebuilt_and_hold_every_step_once(offline, run_info):
    import wandb

    runs = [run_info("a"), run_info("b")]
    for _ in range(2):
        for run in runs:
            logger = WandbLogger()
            assert logger.start(run).last_step == -1
            for step in (1, 2, 5):
                logger.log_metrics({"train/loss": step / 4}, step)
                logger.log_metrics({"perf/tokens_per_second": 8.0}, step)
                logger.flush()
            logger.log_table("compared", ["task", "after"], [["gsm8k", 0.5]], 5)
            logger.finish("done")
            logger.finish("done")
    wandb.teardown()  # as at the end of a process: the library's own one writes for a moment longer
    for run in runs:
        (file,) = run.run_dir.parent.glob(f"wandb/offline-run-*-{run.tracker_id}/run-*.wandb")
        shown = [(line["_step"], line["train/loss"], line["perf/tokens_per_second"]) for line in history(file)]
        assert shown == [(1, 0.25, 8.0), (2, 0.5, 8.0), (5, 1.25, 8.0)]


def test_a_service_that_is_absent_is_unavailable(run_info, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("crucible_train.adapters.loggers.wandb_runs._INIT_TIMEOUT_S", 2.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(LoggerUnavailable, match="W&B"):
            WandbLogger().start(run_info())
