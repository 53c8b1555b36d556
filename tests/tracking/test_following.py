"""The thread from a run's files to a tracker: everything once, in order, at its step; whatever is killed."""

import csv
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.cursor import LeftOut
from crucible_train.journal import Journal, read_events, set_phase
from crucible_train.ports import LoggerUnavailable, Opened, RunInfo
from crucible_train.tracking.command import main
from crucible_train.tracking.follow import Follower
from crucible_train.tracking.replica import Replica
from tests.tracking.conftest import HTTP, cursor, truth, until


def conclude(run_dir: Path) -> None:
    """What the end of a flow does, as far as followers see it."""
    set_phase(run_dir, "done")


def followers(run_dir: Path) -> list[int]:
    """The process ids of the followers of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"follow" in words and str(run_dir).encode() in words:
            found.append(int(path.parent.name))
    return found


def test_a_csv_file_is_an_exact_copy_of_the_metrics(make_run):
    run = make_run(("csv",))
    run.start()
    run.steps(0, 40)
    run.finish()
    conclude(run.dir)
    until(lambda: cursor(run.dir, "csv")["state"] == "done")
    (path,) = (run.dir / "tracking" / "csv").glob("*/metrics.csv")
    rows = list(csv.DictReader(path.open()))
    found = [(int(row.pop("step")), {k: float(v) for k, v in row.items() if v}) for row in rows]
    assert found == truth(run.dir)


def test_every_step_arrives_once_in_order_while_the_run_goes_on(make_run, tracker):
    run = make_run()
    run.start()
    run.steps(0, 20, pause_s=0.05)
    until(lambda: tracker.steps and tracker.only[-1:] and tracker.only[-1][0] == 18)
    run.logger.log_text("sample", "hello", 20)
    run.finish()
    conclude(run.dir)
    until(lambda: cursor(run.dir)["state"] == "done")
    assert tracker.only == truth(run.dir)
    assert tracker.finished == ["done"]
    (event,) = next(iter(tracker.events.values()))
    assert event == {"kind": "text", "name": "sample", "text": "hello", "step": 20}
    until(lambda: not followers(run.dir))


def test_a_killed_follower_leaves_nothing_out_and_sends_nothing_twice(make_run, tracker):
    run = make_run()
    run.start()
    for round_number in range(6):
        run.steps(round_number * 10, round_number * 10 + 9, pause_s=0.01 * (round_number % 3))
        until(lambda: followers(run.dir))
        time.sleep(0.15 * round_number)
        for number in followers(run.dir):
            os.kill(number, signal.SIGKILL)
        run.logger._start_follower(run.dir, HTTP)
    run.finish()
    conclude(run.dir)
    until(lambda: cursor(run.dir)["state"] == "done")
    assert tracker.only == truth(run.dir)


TRAINER = """
import sys
from pathlib import Path
from tests.tracking.conftest import Run
run = Run(Path(sys.argv[1]), (sys.argv[2],))
first, last = int(sys.argv[3]), int(sys.argv[4])
if first:
    kept = b"".join(line for line in run.metrics.path.read_bytes().splitlines(True)[:first])
    run.metrics.rewind(first - 1, kept)
run.start(first)
run.steps(first, last, pause_s=0.02)
if last == 100:
    run.finish()
    from crucible_train.journal import set_phase
    set_phase(run.dir, "done")
else:
    print("far enough", flush=True)
    input()
"""


def test_a_killed_trainer_that_goes_on_from_a_checkpoint_repeats_and_misses_no_step(tmp_path, tracker):
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}

    def train(first: int, last: int) -> None:
        words = [sys.executable, "-c", TRAINER, str(tmp_path / "run"), HTTP, str(first), str(last)]
        with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            if last < 100:
                process.stdout.readline()
                process.kill()

    train(0, 33)
    train(21, 60)  # back to a checkpoint before the kill
    train(60, 77)
    train(50, 100)
    until(lambda: cursor(tmp_path / "run")["state"] == "done")
    assert [step for step, _ in tracker.only] == list(range(101))

    assert tracker.only == truth(tmp_path / "run")
    assert len(tracker.steps) == 1


def test_a_run_that_broke_off_keeps_its_newest_step_back_until_told_otherwise(make_run, tracker, capsys):
    run = make_run()
    run.start()
    run.steps(0, 9)
    run.finish("failed")
    until(lambda: cursor(run.dir)["state"] == "left")
    until(lambda: not followers(run.dir))
    assert [step for step, _ in tracker.only] == list(range(9))
    assert tracker.finished == ["failed"]
    assert main(["sync", str(run.dir)]) == 0
    assert "the newest step is held back" in capsys.readouterr().out
    assert main(["sync", str(run.dir), "--ended"]) == 0
    assert tracker.only == truth(run.dir)


class Forgetful(QuietLogger):
    """A tracker that loses all it held when it fails, once."""

    def __init__(self, held: list[tuple[int, dict[str, float]]], failures: list[int]) -> None:
        self._held, self._failures = held, failures

    def start(self, run: RunInfo) -> Opened:
        return Opened(last_step=max((step for step, _ in self._held), default=-1))

    def log_metrics(self, metrics, step) -> None:
        self._held.append((step, dict(metrics)))

    def finish(self, status) -> None:
        if not self._failures:
            self._failures.append(len(self._held))
            self._held.clear()
            raise LoggerUnavailable("it has lost its file")


def test_a_tracker_that_has_lost_what_it_held_gets_all_of_it_again(make_run):
    run = make_run(("forgetful",), start_follower=lambda *_: None)
    run.start()
    run.steps(0, 12)
    run.finish()
    conclude(run.dir)
    held, failures = [], []
    end = Follower(Replica(run.dir, "forgetful"), lambda _: Forgetful(held, failures)).follow()
    assert (failures, end.state, end.last_step) == ([13], "done", 12)
    assert held == truth(run.dir)


class Talkative(Forgetful):
    """A tracker whose address holds a password."""

    def start(self, run: RunInfo) -> Opened:
        return replace(super().start(run), url="https://me:hunter2@h/run?token=hunter2&page=1")


def test_the_address_of_a_run_is_kept_without_secrets(make_run, capsys):
    run = make_run(("talkative",), start_follower=lambda *_: None)
    run.start()
    run.steps(0, 3)
    run.finish()
    conclude(run.dir)
    end = Follower(Replica(run.dir, "talkative"), lambda _: Talkative([], [0])).follow()
    assert (end.state, end.url) == ("done", "https://me:[redacted]@h/run?token=[redacted]&page=1")
    assert main(["status", str(run.dir)]) == 0
    assert "https://me:[redacted]@h" in capsys.readouterr().out
    assert not [path for path in run.dir.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


class Dear(Forgetful):
    """A tracker whose flush costs so much that there is one at the beginning and one at the end."""

    flush_every_s = 1000.0

    def flush(self) -> None:
        self._failures.append(len(self._held))

    def finish(self, status) -> None:
        pass


def test_a_tracker_whose_flush_is_dear_is_seldom_flushed_while_the_run_goes_on(make_run):
    run = make_run(("dear",), start_follower=lambda *_: None)
    run.start()
    held, flushes = [], []
    follower = Follower(Replica(run.dir, "dear"), lambda _: Dear(held, flushes), parent=os.getppid())
    following = threading.Thread(target=follower.follow)
    following.start()
    run.steps(0, 4)
    until(lambda: held)
    run.steps(5, 20, pause_s=0.05)  # longer than it takes the follower to look again
    run.finish()
    conclude(run.dir)
    following.join(timeout=20)
    assert held == truth(run.dir)
    assert len(flushes) == 2


def test_a_tracker_whose_flush_is_dear_gets_the_events_of_a_pass_with_one_flush(make_run):
    run = make_run(("dear",), start_follower=lambda *_: None)
    run.start()
    run.steps(0, 9)
    for number in range(20):
        run.logger.log_text(f"sample/{number}", "x", 5)
    run.finish()
    conclude(run.dir)
    held, flushes = [], []
    end = Follower(Replica(run.dir, "dear"), lambda _: Dear(held, flushes)).follow()
    assert (end.state, end.last_step, end.num_events) == ("done", 9, 20)
    assert held == truth(run.dir)
    assert flushes == [10]


class Late(QuietLogger):
    """A tracker whose flush is dear, and which finds out only there that it cannot take something."""

    flush_every_s = 1000.0

    def __init__(self, held: list[str]) -> None:
        self._held, self._waiting = held, []

    def start(self, run: RunInfo) -> Opened:
        return Opened(last_step=3)  # it has every step, so nothing that it held is taken to be lost

    def log_text(self, name, text, step) -> None:
        self._waiting.append(name)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if "bad" in waiting:
            raise TypeError("no such text")
        self._held += waiting


def test_the_one_event_that_a_flush_refuses_is_found_and_left_out(make_run):
    run = make_run(("late",), start_follower=lambda *_: None)
    run.start()
    run.steps(0, 3)
    for name in ("a", "bad", "b"):
        run.logger.log_text(name, "x", 2)
    run.finish()
    conclude(run.dir)
    held: list[str] = []
    end = Follower(Replica(run.dir, "late"), lambda _: Late(held)).follow()
    left_out = (LeftOut(1, "text bad: TypeError: no such text"),)
    assert (end.state, end.num_events, end.left_out) == ("done", 3, left_out)
    assert held == ["a", "b"]


def test_what_is_logged_again_by_a_run_that_goes_on_is_noted_once(make_run):
    for _ in range(2):
        run = make_run(start_follower=lambda *_: None)
        run.start()
        run.logger.log_hparams({"seed": 0})
        run.logger.log_text("sample", "one", 1)
        run.logger.log_table("answers", ["a"], [[1], [None]], 1)
        run.logger.link("page", "http://localhost/")
        run.finish()
    assert [event["event"] for event in read_events(run.dir)] == ["hparams", "text", "table", "link"]
    events = run.dir / "tracking" / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-9])  # a kill in the middle of a line
    run = make_run(start_follower=lambda *_: None)
    run.start()
    assert [event["event"] for event in read_events(run.dir)] == ["hparams", "text", "table"]
    run.logger.link("page", "http://localhost/")
    assert len(read_events(run.dir)) == 4


def test_a_call_on_the_step_path_takes_less_than_a_millisecond(make_run, tracker):
    """Of the processor, since others may have it in between; that the call waits for nothing is the next test's."""
    tracker.stop()
    run = make_run()
    run.start()
    spent = []
    for step in range(600):
        run.metrics.log_metrics({"train/loss": 1.0}, step)
        started = time.thread_time()
        run.logger.log_metrics({"train/loss": 1.0}, step)
        run.logger.log_text("sample", f"text {step}", step)
        spent.append(time.thread_time() - started)
    run.finish("failed")
    assert statistics.quantiles(spent, n=100)[98] < 1e-3
    for number in followers(run.dir):
        os.kill(number, signal.SIGKILL)


BLOCKED = """
import time
from pathlib import Path
from crucible_train.adapters.loggers.base import QuietLogger
class Blocked(QuietLogger):
    def start(self, run):
        (run.run_dir / "blocked").touch()
        time.sleep(1000)
"""


def test_no_call_waits_for_a_tracker_that_blocks_or_for_a_picture_that_is_copied(
    make_run, tmp_path, monkeypatch, own_client
):
    """Neither of them comes to an end before the last step is logged: a call that waited would wait for ever."""
    own_client("blocked_client", BLOCKED)
    copying, may_copy = threading.Event(), threading.Event()

    def add_image(*_) -> None:
        copying.set()
        may_copy.wait(60)

    monkeypatch.setattr(Journal, "add_image", add_image)
    run = make_run(("blocked_client:Blocked",))

    def train() -> None:
        run.start()
        run.logger.log_hparams({"seed": 0})
        until((run.dir / "blocked").exists)
        run.logger.log_image("curve", tmp_path / "curve.png", 1)
        copying.wait(20)
        run.steps(0, 300)
        run.logger.log_text("sample", "x", 300)
        run.logger.log_table("answers", ["a"], [[1]], 300)

    training = threading.Thread(target=train, daemon=True)
    training.start()
    training.join(timeout=60)
    assert not training.is_alive()
    assert copying.is_set()
    assert not may_copy.is_set()
    assert cursor(run.dir, "blocked_client-Blocked")["state"] == "new"
    assert len(followers(run.dir)) == 1
    may_copy.set()
    run.finish()
    for number in followers(run.dir):
        os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("words", [["--help"], ["sync", "--help"], ["export", "--help"], ["status", "--help"]])
def test_help_is_shown(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert "usage: python -m crucible_train.tracking" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sync", "nowhere"], "error: nowhere: there is no such folder\n"),
        (
            ["export", "nowhere", "--to", "csv"],
            "error: nowhere: it holds no metrics.jsonl, so it is no run directory\n",
        ),
        (["send"], None),
    ],
)
def test_wrong_input_is_answered_in_a_line(words, told, capsys):
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert told is None or re.fullmatch(told, printed)
