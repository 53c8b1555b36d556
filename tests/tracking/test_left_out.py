"""What a tracker does not take: tried again, left out for its own fault only, named, and sent by the next sync."""

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from crucible_train import wiring
from crucible_train.adapters.loggers.tensorboard_events import TensorBoardLogger
from crucible_train.journal import set_phase
from crucible_train.ports import LoggedArtifact
from crucible_train.ports.metrics_logger import SLOWEST_BYTES_A_SECOND
from crucible_train.tracking.command import main
from crucible_train.tracking.follow import Follower
from crucible_train.tracking.replica import Replica
from tests.tracking.conftest import HTTP, cursor, truth, until
from tests.tracking.http_tracker import HttpTracker, answer
from tests.tracking.test_local_files import read_tensorboard


def finish(run) -> None:
    run.finish()
    set_phase(run.dir, "done")


class Moody(HttpTracker):
    """Does not take a table the first times."""

    def __init__(self, failures: list[str], num: int) -> None:
        super().__init__()
        self._failures, self._num = failures, num

    def log_table(self, name, columns, rows, step) -> None:
        if len(self._failures) < self._num:
            self._failures.append(name)
            raise RuntimeError("503 Slow Down")
        super().log_table(name, columns, rows, step)


def test_an_event_that_fails_twice_arrives_the_third_time_once(make_run, tracker):
    run = make_run(start_follower=lambda *_: None)
    run.start()
    run.logger.log_table("answers", ["a"], [[1]], 2)
    run.logger.log_text("sample", "x", 3)
    run.steps(0, 5)
    finish(run)
    failures: list[str] = []
    end = Follower(Replica(run.dir, HTTP), lambda _: Moody(failures, 2), drain_s=30).follow()
    assert (end.state, end.left_out, end.num_events) == ("done", (), 2)
    assert failures == ["answers"] * 2
    assert [event["name"] for event in next(iter(tracker.events.values()))] == ["answers", "sample"]
    assert tracker.only == truth(run.dir)


def test_what_was_not_taken_is_named_and_sent_by_the_next_sync(make_run, tracker, capsys):
    """As with a token that has expired, for one kind of request."""

    def expired(handler) -> bool:
        is_table = handler.body.get("event", {}).get("kind") == "table"
        if is_table:
            answer(handler, 403)
        return is_table

    tracker.misbehave = expired
    run = make_run()
    run.start()
    run.logger.log_table("answers", ["a"], [[1]], 2)
    run.logger.log_text("sample", "x", 3)
    run.steps(0, 5)
    finish(run)
    until(lambda: cursor(run.dir)["state"] == "done")
    until(lambda: not Replica(run.dir, HTTP).is_at_work())
    assert [one["number"] for one in cursor(run.dir)["left_out"]] == [0]
    assert main(["status", str(run.dir)]) == 1
    printed = capsys.readouterr().out
    assert "lacks 1 event" in printed
    assert "not taken: table answers: HTTPError: HTTP Error 403" in printed
    assert main(["sync", str(run.dir)]) == 1
    tracker.misbehave = lambda _: False
    assert main(["sync", str(run.dir)]) == 0
    assert "sent 1 event" in capsys.readouterr().out
    assert [event["name"] for event in next(iter(tracker.events.values()))] == ["sample", "answers"]
    assert tracker.only == truth(run.dir)
    assert main(["status", str(run.dir)]) == 0


@pytest.mark.parametrize("what", ["nothing", "folder"])
def test_a_file_that_cannot_be_read_is_left_out_at_once_and_the_rest_arrives(make_run, tmp_path, what):
    picture = tmp_path / "curve.png"
    Image.new("RGB", (4, 4), "red").save(picture)
    run = make_run(("tensorboard",), start_follower=lambda *_: None)
    run.start()
    run.logger.log_image("curve", picture, 2)
    run.logger.flush()
    (kept,) = (run.dir / "tracking" / "media").iterdir()
    kept.unlink()
    if what == "folder":
        kept.mkdir()
    run.steps(0, 5)
    finish(run)
    started = time.monotonic()
    end = Follower(Replica(run.dir, "tensorboard"), lambda _: TensorBoardLogger(), drain_s=30).follow()
    assert (end.state, end.last_step, [one.number for one in end.left_out]) == ("done", 5, [0])
    assert end.left_out[0].why.startswith("image curve: ")
    assert time.monotonic() - started < 30
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert [step for step, _ in read_tensorboard(folder)["train/loss"]] == list(range(6))
    if what == "folder":
        kept.rmdir()
    Image.new("RGB", (4, 4), "red").save(kept)
    again = Follower(Replica(run.dir, "tensorboard"), lambda _: TensorBoardLogger(), drain_s=30).follow()
    assert (again.state, again.left_out) == ("done", ())


SLOW = """
import time
from crucible_train.adapters.loggers.base import QuietLogger
class Slow(QuietLogger):
    def log_artifact(self, artifact):
        time.sleep(4)
"""


def test_an_upload_may_take_as_long_as_its_size_at_a_floor_rate(make_run, own_client):
    """The follower gives up 2 s after the last thing was taken: the file takes 4 s and may take 8."""
    own_client("slow_client", SLOW)
    run = make_run(("slow_client:Slow",), start_follower=lambda *_: None)
    run.start()
    run.steps(0, 3)
    big = run.dir / "adapter" / "weights"
    big.parent.mkdir()
    with big.open("wb") as file:
        os.truncate(file.fileno(), 8 * SLOWEST_BYTES_A_SECOND)
    artifact = LoggedArtifact("adapter", "model", is_input=False, digest="ab" * 32, path=big.parent)
    assert artifact.upload_s == 8
    run.logger.log_artifact(artifact)
    finish(run)
    assert wiring.start_follower(run.dir, "slow_client:Slow", "--wait-s", "2").wait(60) == 0
    assert cursor(run.dir, "slow_client-Slow")["state"] == "done"


def test_a_cursor_of_an_older_version_is_read(tmp_path: Path) -> None:
    from crucible_train.cursor import read_cursor

    path = tmp_path / "csv.json"
    path.write_text('{"tracker": "csv", "tracker_id": "a", "last_step": 3, "left_out": null}')
    found = read_cursor(path)
    assert found is not None
    assert (found.last_step, found.left_out) == (3, ())
