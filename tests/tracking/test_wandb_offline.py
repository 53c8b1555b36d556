"""W&B offline through the real follower: what was sent before the first step outlives a kill."""

import json
import os
import signal

from crucible_train.journal import set_phase
from tests.adapters.loggers.test_wandb_runs import history, records
from tests.tracking.conftest import cursor, until
from tests.tracking.test_following import followers


def settings_of(file) -> dict[str, object]:
    from wandb.proto import wandb_internal_pb2

    found: dict[str, object] = {}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        for update in (*record.run.config.update, *record.config.update):
            found[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
    return found


def test_settings_sent_before_the_first_step_are_sent_again_when_the_follower_was_killed(make_run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    run = make_run(("wandb",))
    run.start()
    run.logger.log_hparams({"optim.lr": 0.5, "seed": 7})
    until(lambda: cursor(run.dir, "wandb").get("num_events") == 1, 60)
    assert cursor(run.dir, "wandb")["last_step"] == -1
    for number in followers(run.dir):
        os.kill(number, signal.SIGKILL)
    until(lambda: not followers(run.dir))
    run.logger._start_follower(run.dir, "wandb")
    run.steps(0, 5)
    run.finish()
    set_phase(run.dir, "done")
    until(lambda: cursor(run.dir, "wandb")["state"] == "done", 60)
    until(lambda: not followers(run.dir))  # the library writes the rest of its file after that
    (file,) = run.dir.parent.glob("wandb/offline-run-*/run-*.wandb")
    found = settings_of(file)
    assert (found["optim.lr"], found["seed"]) == (0.5, 7)
    assert [step["_step"] for step in history(file)] == list(range(6))
