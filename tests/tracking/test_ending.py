"""How a run ends, and what its trackers are told of it: also after training, also when it is asked to stop."""

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from crucible_train import files, journal
from crucible_train.config.sections import TrackingConfig
from crucible_train.cursor import Cursor, write_cursor
from crucible_train.journal import read_run, set_phase
from crucible_train.recipes.sft import SFTConfig
from crucible_train.runs.__main__ import main as runs
from crucible_train.tracking import command, follow
from crucible_train.tracking.command import main
from crucible_train.tracking.ending import SentTo, at_work, conclude
from crucible_train.tracking.follow import Follower
from crucible_train.tracking.replica import Replica
from tests.tracking.conftest import HTTP, cursor, truth, until
from tests.tracking.http_tracker import HttpTracker


def concluded(run_dir: Path, **told) -> SentTo:
    config = SFTConfig(report_to=[HTTP], tracking=TrackingConfig(**told))
    (sent,) = asyncio.run(conclude(run_dir, config))
    return sent


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("out of memory"), "failed"), (asyncio.CancelledError(), "interrupted")],
    ids=["failure", "request"],
)
def test_a_run_that_breaks_off_after_training_is_not_done(make_run, tracker, error, status):
    run = make_run()
    run.dir.mkdir(exist_ok=True)
    with pytest.raises(type(error)), at_work(run.dir):  # noqa: PT012
        run.start()
        run.steps(0, 9)
        run.finish()
        until(lambda: tracker.steps and len(tracker.only) == 10)
        raise error
    until(lambda: tracker.finished)
    assert tracker.finished == [status]
    found = read_run(run.dir)
    assert found is not None
    assert found.phase == status
    until(lambda: not Replica(run.dir, HTTP).is_at_work())
    assert concluded(run.dir).lacks == ""  # the same run, asked for again, is found and evaluated
    assert tracker.finished == [status, "done"]
    assert tracker.only == truth(run.dir)


def test_a_tracker_whose_follower_has_left_is_told_too_that_the_run_broke_off(make_run, tracker):
    run = make_run(start_follower=lambda *_: None)
    run.dir.mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="wrong"), at_work(run.dir):  # noqa: PT012
        run.start()
        run.steps(0, 3)
        run.finish()
        assert Follower(Replica(run.dir, HTTP), lambda _: HttpTracker()).follow().state == "left"
        raise ValueError("wrong")
    until(lambda: len(tracker.finished) == 2)
    assert tracker.finished == ["interrupted", "failed"]


@pytest.mark.parametrize("phase", ["training", "done"])
def test_what_another_process_does_or_did_is_not_broken_off(make_run, tracker, phase):
    run = make_run((), start_follower=lambda *_: None)
    run.start()
    set_phase(run.dir, phase)
    with pytest.raises(RuntimeError), at_work(run.dir):
        raise RuntimeError
    found = read_run(run.dir)
    assert found is not None
    assert found.phase == phase


def test_a_run_whose_process_is_gone_before_its_results_was_interrupted(make_run, tracker):
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.steps(0, 5)
    run.finish()
    assert Follower(Replica(run.dir, HTTP), lambda _: HttpTracker()).follow().state == "left"
    assert tracker.finished == ["interrupted"]
    assert tracker.only == truth(run.dir)


def test_the_end_of_a_run_waits_for_a_tracker_that_refused_before(make_run, tracker):
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.steps(0, 9)
    run.finish()
    found = read_run(run.dir)
    assert found is not None
    replica = Replica(run.dir, HTTP)
    write_cursor(replica.cursor_path, Cursor(HTTP, found.info.tracker_id, state="refused", problem="a token expired"))
    assert concluded(run.dir).lacks == ""
    assert tracker.only == truth(run.dir)


def test_what_trackers_are_told_of_a_finished_run_may_change(make_run, tracker):
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.steps(0, 4)
    run.finish()
    assert concluded(run.dir, name="first").lacks == ""
    until(lambda: not Replica(run.dir, HTTP).is_at_work())
    tracker.requested_at.clear()
    assert concluded(run.dir, name="first").lacks == ""
    assert tracker.requested_at == [], "nothing has changed"
    assert concluded(run.dir, name="second", tags=["a"]).lacks == ""
    assert tracker.names == ["first", "second"]
    assert tracker.only == truth(run.dir)
    assert [event["kind"] for event in next(iter(tracker.events.values()))] == ["hparams"]


def test_a_tracker_that_refuses_is_asked_again_as_long_as_the_run_is_trained(make_run, tracker, monkeypatch):
    monkeypatch.setattr(follow, "LONGEST_S", 0.05)
    refused = []

    class Expired(HttpTracker):
        def start(self, run):
            if len(refused) < 6:
                refused.append(run.name)
                raise RuntimeError("401 Unauthorized")
            return super().start(run)

    run = make_run(start_follower=lambda *_: None)
    run.start()
    follower = Follower(Replica(run.dir, HTTP), lambda _: Expired(), parent=os.getppid(), drain_s=30)
    following = threading.Thread(target=follower.follow)
    following.start()
    run.steps(0, 5)
    until(lambda: len(refused) == 6)
    until(lambda: tracker.steps and tracker.only)
    run.finish()
    set_phase(run.dir, "done")
    following.join(timeout=20)
    assert cursor(run.dir)["state"] == "done"
    assert tracker.only == truth(run.dir)


def test_the_end_of_a_run_cuts_the_wait_of_a_tracker_short(make_run, tracker, monkeypatch):
    monkeypatch.setattr(follow, "LONGEST_S", 1000.0)
    is_refusing = [True]

    class Expired(HttpTracker):
        def start(self, run):
            if is_refusing[0]:
                raise RuntimeError("401 Unauthorized")
            return super().start(run)

    run = make_run(start_follower=lambda *_: None)
    run.start()
    follower = Follower(Replica(run.dir, HTTP), lambda _: Expired(), parent=os.getppid())
    following = threading.Thread(target=follower.follow)
    following.start()
    run.steps(0, 5)
    until(lambda: follower._num_refusals == 3)
    is_refusing[0] = False
    run.finish()
    set_phase(run.dir, "done")
    following.join(timeout=20)
    assert cursor(run.dir)["state"] == "done"


def test_a_full_disk_under_the_run_is_waited_for_and_nothing_is_sent_twice(make_run, tracker, monkeypatch, capfd):
    refused, written = [], follow.write_cursor

    def write(path, cursor) -> None:
        if cursor.num_events and len(refused) < 4:
            refused.append(cursor.state)
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, cursor)

    monkeypatch.setattr(follow, "write_cursor", write)
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.logger.log_text("sample", "x", 2)
    run.steps(0, 5)
    run.finish()
    set_phase(run.dir, "done")
    end = Follower(Replica(run.dir, HTTP), lambda _: HttpTracker(), drain_s=60).follow()
    assert (end.state, len(refused)) == ("done", 4)
    assert "unavailable" in refused, "noting the failure failed as well"
    assert tracker.only == truth(run.dir)
    assert [event["name"] for event in next(iter(tracker.events.values()))] == ["sample"]


def test_whatever_ends_a_follower_is_printed_without_secrets(make_run, tracker, monkeypatch, capsys):
    run = make_run(start_follower=lambda *_: None)
    run.start()

    def broken(*_, **__) -> None:
        raise RuntimeError("password=hunter2hunter2")

    monkeypatch.setattr(command, "Follower", broken)
    assert main(["follow", str(run.dir), HTTP]) == 1
    printed = capsys.readouterr().err
    assert "RuntimeError" in printed
    assert "hunter2" not in printed


def test_an_export_of_a_run_that_is_trained_holds_its_newest_step_back(make_run, tracker, capsys):
    run = make_run((), start_follower=lambda *_: None)
    run.start()
    with files.held(run.dir):  # as a flow does
        run.steps(0, 7)
        run.metrics.flush()
        assert main(["export", str(run.dir), "--to", HTTP]) == 0
        assert "the newest step is held back" in capsys.readouterr().out
        assert tracker.only == truth(run.dir)[:-1]
        assert main(["sync", str(run.dir), "--ended"]) == 0
        assert tracker.only == truth(run.dir)[:-1]
        run.metrics.log_metrics({"eval/nll": 1.0}, 7)
        run.metrics.flush()
    assert main(["sync", str(run.dir), "--ended"]) == 0
    assert tracker.only == truth(run.dir)


def test_a_run_that_was_never_tracked_and_is_trained_is_not_taken_to_be_done(make_run, tracker):
    run = make_run(())
    with files.held(run.dir):
        run.steps(0, 7)
        run.metrics.flush()
        assert main(["export", str(run.dir), "--to", HTTP]) == 0
        assert tracker.only == truth(run.dir)[:-1]
    tracker.steps.clear()
    assert main(["export", str(run.dir), "--to", HTTP]) == 0
    assert tracker.only == truth(run.dir)


def test_a_run_is_not_deleted_under_its_follower_and_a_follower_makes_no_deleted_run_again(
    make_run, tracker, capsys, monkeypatch
):
    is_hanging = [True]

    def hang(_) -> bool:
        until(lambda: not is_hanging[0])
        return False

    tracker.misbehave = hang
    run = make_run()
    (run.dir / "config.json").write_text("{}")
    run.start()
    run.steps(0, 3)
    run.finish()
    set_phase(run.dir, "done")
    until(lambda: tracker.requested_at)
    folder = str(run.dir.parent)
    assert runs(["delete", run.dir.name, "--folder", folder, "--yes"]) == 2
    assert "it is being sent to a tracker" in capsys.readouterr().err
    is_hanging[0] = False
    until(lambda: not files.is_held(run.dir / "tracking"))
    replica = Replica(run.dir, HTTP)
    found = read_run(run.dir)
    assert found is not None
    assert runs(["delete", run.dir.name, "--folder", folder, "--yes"]) == 0
    with pytest.raises(FileNotFoundError):
        write_cursor(replica.cursor_path, replica.cursor(found))
    assert main(["follow", str(run.dir), HTTP]) == 2
    assert not run.dir.exists()
    assert journal.read_run(run.dir) is None
