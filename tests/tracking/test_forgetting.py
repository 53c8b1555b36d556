"""A tracker that will never have a run is given up."""

import os
import signal

from crucible_train import files
from crucible_train.journal import read_run
from crucible_train.tracking.command import main
from crucible_train.tracking.replica import Replica, replicas
from tests.tracking.conftest import HTTP, cursor, truth, until
from tests.tracking.test_faults import finish
from tests.tracking.test_following import followers


def test_what_will_never_arrive_can_be_forgotten(make_run, tracker, capsys):
    run = make_run((HTTP, "csv"))
    tracker.stop()
    run.start()
    run.steps(0, 3)
    finish(run)
    until(lambda: cursor(run.dir, "csv")["state"] == "done")
    until(lambda: cursor(run.dir)["state"] == "unavailable")
    for number in followers(run.dir):
        os.kill(number, signal.SIGKILL)
    until(lambda: not Replica(run.dir, HTTP).is_at_work())
    assert main(["export", str(run.dir), "--to", HTTP, "--wait-s", "0.5"]) == 1
    exported = next(one.name for one in replicas(read_run(run.dir)) if one.name not in (HTTP, "csv"))
    assert main(["forget", str(run.dir), "else"]) == 2
    assert f"NAME: else: the run has {HTTP}, csv, {exported}" in capsys.readouterr().err
    assert main(["forget", str(run.dir), exported]) == 0
    assert main(["status", str(run.dir)]) == 1
    assert main(["forget", str(run.dir), HTTP]) == 0
    assert main(["status", str(run.dir)]) == 0
    assert [one.name for one in replicas(read_run(run.dir))] == ["csv"]
    assert not [path.name for path in (run.dir / "tracking").iterdir() if "HttpTracker" in path.name]


def test_a_run_that_is_trained_forgets_no_tracker(make_run, tracker, capsys):
    run = make_run((HTTP,))
    run.start()
    run.steps(0, 3)
    with files.held(run.dir):
        assert main(["forget", str(run.dir), HTTP]) == 2
    assert "it is being trained" in capsys.readouterr().err
    finish(run)
    until(lambda: cursor(run.dir)["state"] == "done")
    assert tracker.only == truth(run.dir)
