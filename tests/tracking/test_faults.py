"""A tracker that is absent, dies, is slow, refuses or has a full disk: the run loses nothing and waits for nothing."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from crucible_train import journal, wiring
from crucible_train.journal import plain, read_run, set_phase
from crucible_train.ports import Opened
from crucible_train.tracking.backoff import FIRST_S, LONGEST_S, Backoff
from crucible_train.tracking.command import give_way, main
from crucible_train.tracking.follow import Follower
from crucible_train.tracking.replica import Replica
from tests.tracking.conftest import HTTP, cursor, truth, until
from tests.tracking.http_tracker import TIMEOUT_S, HttpTracker, answer
from tests.tracking.test_following import followers


def finish(run) -> None:
    run.finish()
    set_phase(run.dir, "done")


def sent(make_run, tracker, last_step):
    """A finished run that its only tracker has whole."""
    run = make_run((tracker,))
    run.start()
    run.steps(0, last_step)
    finish(run)
    until(lambda: cursor(run.dir, plain(tracker))["state"] == "done")
    return run


def test_a_server_that_is_absent_at_the_start_gets_everything_when_it_comes(make_run, tracker):
    tracker.stop()
    run = make_run()
    run.start()
    run.steps(0, 30)
    until(lambda: cursor(run.dir)["state"] == "unavailable")
    assert "no answer" in cursor(run.dir)["problem"]
    tracker.start()
    finish(run)
    until(lambda: cursor(run.dir)["state"] == "done")
    assert tracker.only == truth(run.dir)
    assert cursor(run.dir)["problem"] is None


def test_a_server_that_dies_and_comes_back_several_times_misses_and_repeats_nothing(make_run, tracker):
    run = make_run()
    run.start()
    for part in range(4):
        run.steps(part * 25, part * 25 + 24, pause_s=0.02)
        tracker.stop()
        time.sleep(0.3)
        tracker.start()
    finish(run)
    until(lambda: cursor(run.dir)["state"] == "done")
    assert tracker.only == truth(run.dir)


def test_what_was_taken_but_not_answered_for_is_not_sent_again(make_run, tracker):
    """The server keeps the steps, and its answer is lost: by a 500, by silence, by a broken connection."""
    draw, faults = random.Random(3), []

    def lossy(handler) -> bool:
        if handler.path != "/steps" or draw.random() < 0.4:
            return False
        tracker.take(handler.path, handler.body)
        faults.append(len(faults) % 2)
        if faults[-1] == 0:
            answer(handler, 500)
        return True

    tracker.misbehave = lossy
    run = make_run()
    run.start()
    for step in range(5000):
        run.steps(step, step, pause_s=0.03)
        if step >= 60 and len(faults) >= 2:
            break
    assert len(faults) >= 2
    tracker.misbehave = lambda _: False
    finish(run)
    until(lambda: cursor(run.dir)["state"] == "done")
    assert tracker.only == truth(run.dir)


def test_a_wish_to_be_asked_later_is_honoured(make_run, tracker):
    refused_at = []

    def busy(handler) -> bool:
        if len(refused_at) < 1 and handler.path == "/steps":
            refused_at.append(time.monotonic())
            answer(handler, 429, Retry_After="2")
            return True
        return False

    tracker.misbehave = busy
    run = make_run()
    run.start()
    run.steps(0, 10)
    finish(run)
    until(lambda: cursor(run.dir)["state"] == "done")
    later = [at for at in tracker.requested_at if at > refused_at[0]]
    assert later[0] - refused_at[0] >= 2
    assert tracker.only == truth(run.dir)


def test_a_server_that_hangs_is_left_and_sync_sends_the_rest(make_run, tracker, capsys):
    is_hanging = [True]

    def hang(handler) -> bool:
        while is_hanging[0]:
            time.sleep(0.05)
        return False

    tracker.misbehave = hang
    run = make_run()
    run.start()
    run.steps(0, 10)
    finish(run)
    until(lambda: cursor(run.dir)["state"] == "unavailable")
    for number in followers(run.dir):
        os.kill(number, signal.SIGKILL)
    until(lambda: not Replica(run.dir, HTTP).is_at_work())  # a killed process lets go of its lock last
    assert main(["status", str(run.dir)]) == 1
    assert "lacks 11 steps" in capsys.readouterr().out
    assert main(["sync", str(run.dir), "--wait-s", str(TIMEOUT_S / 2)]) == 1
    is_hanging[0] = False
    tracker.steps.clear()
    assert main(["sync", str(run.dir)]) == 0
    assert "sent steps 0 to 10" in capsys.readouterr().out
    assert tracker.only == truth(run.dir)
    assert main(["sync", str(run.dir.parent)]) == 0
    assert "nothing was sent" in capsys.readouterr().out


HANGING = """
import time
from crucible_train.adapters.loggers.base import QuietLogger
class Hanging(QuietLogger):
    def start(self, run):
        time.sleep(1000)
"""


def test_a_follower_whose_client_never_comes_back_ends_when_its_run_has(make_run, own_client):
    own_client("hanging_client", HANGING)
    run = make_run(("hanging_client:Hanging",), start_follower=lambda *_: None)
    run.start()
    run.steps(0, 3)
    finish(run)
    process = wiring.start_follower(run.dir, "hanging_client:Hanging", "--wait-s", "1")
    assert process.wait(100) == 3
    assert cursor(run.dir, "hanging_client-Hanging")["problem"] == "it does not answer"


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux alone has this priority")
def test_a_follower_has_only_the_processor_time_that_its_run_leaves(make_run, tracker):
    """Linux weighs sessions before priorities, so it must be of the run's; its own group keeps Ctrl-C from it."""
    run = make_run(start_follower=lambda *_: None)
    run.start()
    process = wiring.start_follower(run.dir, HTTP, "--parent", str(os.getpid()))
    until(lambda: os.sched_getscheduler(process.pid) == os.SCHED_IDLE)
    assert os.getsid(process.pid) == os.getsid(0)
    assert os.getpgid(process.pid) == process.pid
    run.steps(0, 3)
    finish(run)
    assert process.wait(60) == 0
    assert tracker.only == truth(run.dir)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux alone has this priority")
def test_what_is_sent_when_asked_for_is_sent_as_fast_as_anything(make_run, tracker):
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.steps(0, 3)
    finish(run)
    may_answer = threading.Event()
    tracker.misbehave = lambda _: not may_answer.wait(1)
    process = wiring.start_follower(run.dir, HTTP)
    until(lambda: tracker.requested_at)
    assert os.sched_getscheduler(process.pid) == os.sched_getscheduler(0)
    may_answer.set()
    assert process.wait(60) == 0
    assert tracker.only == truth(run.dir)


def test_where_the_idle_priority_is_refused_a_follower_is_as_nice_as_can_be(monkeypatch):
    asked: list[int] = []

    def refused(*_):
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refused, raising=False)
    monkeypatch.setattr(os, "nice", asked.append)
    give_way()
    assert asked == [19]


def test_followers_killed_at_random_points_leave_everything_once(make_run, tracker):
    draw = random.Random(7)
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.steps(0, 400)
    run.logger.log_hparams({"seed": 0})
    finish(run)
    slow = lambda _: time.sleep(0.02)  # noqa: E731
    tracker.misbehave = slow
    for _ in range(12):
        process = wiring.start_follower(run.dir, HTTP)
        time.sleep(0.35 + draw.random() * 0.5)
        process.kill()
        process.wait()
        assert [step for step, _ in tracker.only] == list(range(len(tracker.only))) if tracker.steps else True
    assert wiring.start_follower(run.dir, HTTP).wait(100) == 0
    assert tracker.only == truth(run.dir)
    assert cursor(run.dir)["num_events"] == 1


def test_two_senders_of_one_replica_are_never_at_work_at_once(make_run, tracker):
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.steps(0, 300)
    finish(run)
    tracker.misbehave = lambda _: time.sleep(0.05)
    both = [wiring.start_follower(run.dir, HTTP) for _ in range(3)]
    assert [process.wait(100) for process in both] == [0, 0, 0]
    assert tracker.only == truth(run.dir)
    assert tracker.finished == ["done"]


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from crucible_train.tracking.command import main
sys.exit(main(["follow", sys.argv[1], "csv", "--wait-s", "6"]))
"""


def test_a_full_disk_stops_the_tracker_only_and_sync_sends_the_rest_when_there_is_room(make_run, tmp_path, capsys):
    """The limit on a file's size stands for the disk: writing past it fails as writing to a full disk does."""
    run = make_run(("csv",), start_follower=lambda *_: None)
    run.start()
    run.steps(0, 300)
    finish(run)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(run.dir)],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert cursor(run.dir, "csv")["state"] == "unavailable"
    assert "too large" in cursor(run.dir, "csv")["problem"]
    assert main(["sync", str(run.dir)]) == 0
    from tests.tracking.test_local_files import read_csv

    (path,) = (run.dir / "tracking" / "csv").glob("*/metrics.csv")
    assert read_csv(path) == truth(run.dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_fills_is_waited_for(make_run, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        filler = disk / "filler"
        filler.write_bytes(b"\0" * 56 * 1024)
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(disk / "tensorboard"))
        run = make_run(("tensorboard",))
        run.start()
        run.steps(0, 400)
        until(lambda: cursor(run.dir, "tensorboard")["state"] == "unavailable")
        filler.unlink()
        run.finish()
        set_phase(run.dir, "done")
        until(lambda: cursor(run.dir, "tensorboard")["state"] == "done")
        from tests.tracking.test_local_files import read_tensorboard

        (folder,) = (disk / "tensorboard").iterdir()
        assert [step for step, _ in read_tensorboard(folder)["train/loss"]] == list(range(401))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


class Fussy(HttpTracker):
    """Refuses one table, and is otherwise well."""

    def log_table(self, name, columns, rows, step) -> None:
        raise TypeError("no such column")


def test_an_event_that_cannot_be_taken_is_left_out_and_told_of_and_the_rest_arrives(make_run, tracker):
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.logger.log_table("answers", ["a"], [[1]], 2)
    run.logger.log_text("sample", "x", 3)
    run.steps(0, 5)
    finish(run)
    left = Follower(Replica(run.dir, HTTP), lambda _: Fussy(), drain_s=5).follow()
    assert left.state == "done"
    assert [(one.number, one.why) for one in left.left_out] == [(0, "table answers: TypeError: no such column")]
    assert tracker.only == truth(run.dir)
    assert [event["name"] for event in next(iter(tracker.events.values()))] == ["sample"]


class Broken(HttpTracker):
    def start(self, run) -> Opened:
        raise RuntimeError("token=hunter2hunter2 is wrong\nsecond line")


def test_a_tracker_that_refuses_everything_is_given_up_in_a_line_without_secrets(make_run, tracker, capfd):
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.steps(0, 5)
    finish(run)
    left = Follower(Replica(run.dir, HTTP), lambda _: Broken(), drain_s=30).follow()
    assert left.state == "refused"
    assert left.problem is not None
    assert "hunter2" not in left.problem
    assert "\n" not in left.problem
    assert "hunter2" not in capfd.readouterr().err


def test_waits_double_with_jitter_up_to_a_minute_and_never_undercut_a_wish():
    backoff = Backoff()
    waits = [backoff.next_s(None) for _ in range(40)]
    for number, wait in enumerate(waits):
        longest = min(LONGEST_S, FIRST_S * 2**number)
        assert longest / 2 <= wait <= longest
    assert len(set(waits)) == 40
    assert backoff.next_s(90.0) >= 90
    backoff.reset()
    assert backoff.next_s(None) <= FIRST_S


def test_an_export_is_a_new_run_each_time_and_the_tracked_one_stays(make_run, tracker, capsys):
    run = sent(make_run, "csv", 12)
    for _ in range(2):
        assert main(["export", str(run.dir), "--to", HTTP]) == 0
    assert len(tracker.steps) == 2
    assert list(tracker.steps.values()) == [truth(run.dir)] * 2
    known = read_run(run.dir)
    assert known is not None
    assert known.info.tracker_id not in tracker.steps
    assert main(["sync", str(run.dir)]) == 0  # nothing is left, of the exports either
    assert all("lacks" not in line for line in capsys.readouterr().out.splitlines())


def test_a_run_that_was_never_tracked_can_be_exported(make_run, tracker, tmp_path):
    run = make_run(())
    run.steps(0, 8)
    run.metrics.finish("done")
    assert journal.read_run(run.dir) is None
    assert main(["export", str(run.dir), "--to", HTTP, "--to", "csv"]) == 0
    assert tracker.only == truth(run.dir)
    assert main(["export", str(run.dir), "--to", "console"]) == 2
