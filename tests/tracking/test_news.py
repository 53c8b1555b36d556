"""What a person is told of trackers while a run is trained."""

import pytest

from crucible_train.adapters.loggers import replicated
from crucible_train.cursor import Cursor, write_cursor
from crucible_train.tracking.replica import Replica
from tests.tracking.conftest import HTTP, until
from tests.tracking.test_faults import finish

GOES_ON = "the run goes on, and what is not sent now is sent later"


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(replicated, "_LOOK_EVERY_S", 0.0)
    return []


@pytest.fixture
def run(make_run, told):
    """A run whose follower the test plays."""
    run = make_run(report=told.append, start_follower=lambda *_: None)
    (run.dir / "tracking").mkdir(parents=True)
    return run


def note(run, **values) -> None:
    write_cursor(Replica(run.dir, HTTP).cursor_path, Cursor(HTTP, "id", **values))


def test_where_a_run_is_and_what_holds_it_up_and_that_it_is_refused_are_told_once_each(run, told):
    run.start()
    run.steps(0, 0)
    assert told == []
    note(run, state="unavailable", problem="no answer")
    run.steps(1, 2)
    assert told == [f"  {HTTP}: no answer; {GOES_ON}"]
    note(run, state="sending", url="https://tracker/runs/1")
    run.steps(3, 4)
    assert told[1:] == [f"  {HTTP}: https://tracker/runs/1"]
    note(run, state="unavailable", problem="status 429", url="https://tracker/runs/1")
    run.steps(5, 5)
    note(run, state="refused", problem="the key is wrong")
    run.steps(6, 7)
    sync = "python -m crucible_train.tracking sync"
    assert told[2:] == [f"  {HTTP}: the key is wrong; the run goes on, and {sync} sends it when this is mended"]


@pytest.mark.parametrize("values", [{"state": "unavailable", "problem": "no answer"}, {"state": "refused"}])
def test_what_stands_there_from_another_time_is_not_told(run, told, values):
    note(run, url="https://tracker/runs/1", **values)
    run.start()
    run.steps(0, 3)
    assert told == []
    note(run, state="sending", url="https://tracker/runs/1")
    run.steps(4, 4)
    assert told == [f"  {HTTP}: https://tracker/runs/1"]


def test_a_file_is_no_page(run, told):
    run.start()
    note(run, state="sending", url="file:///runs/mlflow.db")
    run.steps(0, 0)
    assert told == []


@pytest.mark.parametrize("damage", ["{", "[]", '{"tracker": "a", "tracker_id": "b", "state": "sending", "url": 5}'])
def test_a_damaged_file_is_no_news(run, told, damage):
    run.start()
    Replica(run.dir, HTTP).cursor_path.write_text(damage)
    run.steps(0, 0)
    assert told == []


def test_a_terminal_that_cannot_show_a_line_stops_no_tracker(make_run, told):
    def report(line: str) -> None:
        told.append(line)
        line.encode("ascii")

    run = make_run(report=report, start_follower=lambda *_: None)
    run.start()
    note(run, state="unavailable", problem="keine Antwort: \u00fcberlastet")
    run.steps(0, 1)
    assert len(told) == 1


def test_the_real_follower_is_heard_of(make_run, told, tracker):
    tracker.stop()
    run = make_run(report=told.append)
    run.start()
    steps = iter(range(100_000))

    def has_told(num_lines: int) -> bool:
        step = next(steps)
        run.steps(step, step)
        return len(told) >= num_lines

    until(lambda: has_told(1))
    assert told[0].startswith(f"  {HTTP}: no answer")
    tracker.start()
    until(lambda: has_told(2))
    assert told[1] == f"  {HTTP}: {tracker.url}/{next(iter(tracker.steps))}"
    finish(run)
