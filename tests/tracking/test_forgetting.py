"""An export that will never arrive, or a tracker that is wanted no more, is given up."""

from crucible_train import journal
from crucible_train.journal import read_run
from crucible_train.tracking.command import main
from crucible_train.tracking.replica import Replica, replicas
from tests.tracking.conftest import HTTP, truth, until
from tests.tracking.test_faults import sent


def test_an_export_that_will_never_arrive_is_forgotten(make_run, tracker, capsys):
    run = sent(make_run, "csv", 3)
    tracker.stop()
    assert main(["export", str(run.dir), "--to", HTTP, "--wait-s", "0.5"]) == 1
    assert main(["status", str(run.dir)]) == 1
    (exported,) = (one for one in replicas(read_run(run.dir)) if one.name != "csv")
    capsys.readouterr()
    assert main(["forget", str(run.dir), "else"]) == 2
    assert f"NAME: else: the run has csv, {exported.name}" in capsys.readouterr().err
    with exported.lock():
        assert main(["forget", str(run.dir), exported.name]) == 2
    assert "its follower is at work" in capsys.readouterr().err
    assert main(["forget", str(run.dir), exported.name, exported.name]) == 0
    assert main(["status", str(run.dir)]) == 0
    assert [one.name for one in replicas(read_run(run.dir))] == ["csv"]
    assert not [path.name for path in (run.dir / "tracking").iterdir() if path.name.startswith(exported.name)]


def test_a_follower_of_what_was_forgotten_sends_nothing(make_run, tracker):
    run = sent(make_run, "csv", 3)
    assert main(["follow", str(run.dir), "forgotten-0123"]) == 0
    assert [one.name for one in replicas(read_run(run.dir))] == ["csv"]
    assert tracker.steps == {}


def test_a_tracker_of_the_runs_own_is_forgotten_when_the_run_is_told_without_it(make_run, tracker, capsys):
    run = sent(make_run, HTTP, 3)
    assert main(["forget", str(run.dir), HTTP]) == 2
    assert "ask for the run again with a report_to without it" in capsys.readouterr().err
    known = read_run(run.dir)
    journal.begin(known.info, ("csv",), "done")
    kept = Replica(run.dir, "tests.tracking.http_tracker-HttpTracker")
    until(lambda: not kept.is_at_work())
    assert main(["forget", str(run.dir), kept.name]) == 0
    assert [one.name for one in replicas(read_run(run.dir))] == ["csv"]
    assert tracker.only == truth(run.dir)
