"""A flow's trackers: they have what the run's files have, a second run starts nothing, and the page links to them."""

import asyncio
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.errors import RunError
from crucible_train.tracking.ending import SentTo
from crucible_train.tracking.follow import DRAIN_S
from flows import artifacts
from tests.tracking.conftest import HTTP, cursor, truth, until
from tests.tracking.http_tracker import TrackingServer, answer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(finished: Any, tmp_path: Path) -> Any:
    """The finished run's cache without its training."""
    return finished[0].copy(tmp_path, "train", "package")


def test_a_run_is_in_its_trackers_when_it_ends(
    place: Any, run_flow: Callable[[Any], Any], tracker: TrackingServer
) -> None:
    config = place.config(f"report_to=[csv, '{HTTP}']", "tracking.tags=[a, b]")
    first = run_flow(config)
    assert first.state.is_completed()
    run_dir = next((place.folder / "runs").glob("*/metrics.jsonl")).parent
    assert cursor(run_dir)["state"] == "done"
    assert tracker.only == truth(run_dir)
    assert tracker.finished == ["done"]
    (path,) = (run_dir / "tracking" / "csv").glob("*/metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    found = [(int(row.pop("step")), {k: float(v) for k, v in row.items() if v}) for row in rows]
    assert found == truth(run_dir)
    (received,) = tracker.events.values()
    assert [event["kind"] for event in received].count("hparams") == 1
    events = {event.get("name", event["kind"]): event for event in received}
    assert set(events) >= {"hparams", "eval/before_after", "rows.jsonl", "adapter", "report", "model"}
    assert events["hparams"]["values"]["train.max_steps"] == 16
    assert "report_to" not in events["hparams"]["values"]
    record = json.loads((run_dir / "record.json").read_text())
    assert events["rows.jsonl"]["digest"] == record["artifacts"]["conversations"]["sha256"]
    assert f"tracking   csv: file://{path}" in first.printed

    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    tracker.requested_at.clear()
    second = run_flow(config)
    assert second.state.is_completed()
    assert tracker.requested_at == []
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_tracker_that_is_absent_costs_a_line_and_is_sent_everything_later(
    place: Any, run_flow: Callable[[Any], Any], tracker: TrackingServer
) -> None:
    tracker.stop()
    run = run_flow(place.config(f"report_to=['{HTTP}']", "tracking.finish_wait_s=0.5"))
    assert run.state.is_completed()
    run_dir = next((place.folder / "runs").glob("*/metrics.jsonl")).parent
    (line,) = (line for line in run.printed.splitlines() if line.startswith("tracking"))
    assert "HttpTracker lacks 17 steps and" in line
    assert f"python -m crucible_train.tracking sync {run_dir.relative_to(place.folder)}" in line
    tracker.start()
    words = [sys.executable, "-m", "crucible_train.tracking", "sync", "runs"]
    until(lambda: _synced(words, place.folder), 2 * DRAIN_S)  # the run's follower has as long as one of them
    assert tracker.only == truth(run_dir)


def test_a_run_that_fails_after_training_is_failed_in_its_tracker(
    place: Any, run_flow: Callable[[Any], Any], tracker: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        raise RunError("the package cannot be written")

    config = place.config(f"report_to=['{HTTP}']")
    with monkeypatch.context() as patched:
        patched.setattr("flows.sft.package", broken)
        assert run_flow(config).state.is_failed()
    until(lambda: tracker.finished)
    assert tracker.finished == ["failed"]
    assert run_flow(config).state.is_completed()
    run_dir = next((place.folder / "runs").glob("*/metrics.jsonl")).parent
    assert cursor(run_dir)["state"] == "done"
    assert tracker.finished == ["failed", "done"]
    assert tracker.only == truth(run_dir)


def _synced(words: list[str], folder: Path) -> bool:
    """Sync; the follower that the run left behind may be at it still."""
    done = subprocess.run(words, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    return done.returncode == 0 and "has everything" in done.stdout


def test_a_run_that_is_found_is_sent_to_a_tracker_that_it_did_not_have(
    finished: Any, run_flow: Callable[[Any], Any], tmp_path: Path, tracker: TrackingServer
) -> None:
    place = finished[0].copy(tmp_path)
    shutil.copytree(finished[0].folder / "runs", tmp_path / "runs")
    run = run_flow(place.config(f"report_to=['{HTTP}']"))
    assert run.state.is_completed()
    assert [step for step, _ in tracker.only] == list(range(17))


def test_a_run_killed_while_it_trains_goes_on_in_the_same_replica(
    place: Any, start: Callable[..., Any], server: str, tracker: TrackingServer
) -> None:
    words = (*place.words, f"report_to=[console, '{HTTP}']", "checkpoint.save_steps=3")
    for step in (4, 12):
        running = start(words, PREFECT_API_URL=server)
        running.wait_for(f"  step {step:>2}/16")
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
    ended = start(words, PREFECT_API_URL=server).end()
    assert ended.status == 0, ended.err
    assert "goes on from step" in ended.out
    run_dir = next((place.folder / "runs").glob("*/metrics.jsonl")).parent
    assert cursor(run_dir)["state"] == "done"
    assert len(tracker.steps) == 1
    repeatable = [(step, _repeatable(values)) for step, values in tracker.only]
    assert repeatable == [(step, _repeatable(values)) for step, values in truth(run_dir)]


def _repeatable(values: dict[str, float]) -> dict[str, float]:
    """What is the same when a step is done again."""
    return {name: value for name, value in values.items() if name.partition("/")[0] not in ("time", "perf", "system")}


def test_the_page_of_a_run_links_to_its_trackers(
    place: Any, run_flow: Callable[[Any], Any], tracker: TrackingServer, server: str
) -> None:
    import urllib.request

    run = run_flow(place.config(f"report_to=['{HTTP}', csv]"))
    request = urllib.request.Request(
        f"{server}/artifacts/filter",
        json.dumps({"artifacts": {"flow_run_id": {"any_": [str(run.id)]}}}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:
        found = {one["key"]: one for one in json.load(reply)}
    assert tracker.url in found["trackers"]["data"]
    assert "csv: <file://" in found["trackers"]["data"]
    assert tracker.url in found["tracker-tests-tracking-http-tracker-httptracker"]["data"]


def test_only_what_a_browser_opens_is_a_link_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    async def make(text: str, **_: Any) -> None:
        made.append(text)

    monkeypatch.setattr(artifacts, "acreate_markdown_artifact", make)
    urls = ("file:///runs/metrics.csv", "sqlite:////runs/mlflow.db", None)
    asyncio.run(artifacts.publish_trackers([SentTo("one", url, "2 steps" if url is None else "") for url in urls]))
    assert made == [
        "- one: <file:///runs/metrics.csv>\n- one: `sqlite:////runs/mlflow.db`\n- one: in its own files (lacks 2 steps)"
    ]


def test_a_server_that_misbehaves_all_the_time_changes_neither_result_nor_status(
    place: Any, run_flow: Callable[[Any], Any], tracker: TrackingServer
) -> None:
    def busy(handler: Any) -> bool:
        answer(handler, 429, Retry_After="1")
        return True

    tracker.misbehave = busy
    run = run_flow(place.config(f"report_to=['{HTTP}']", "tracking.finish_wait_s=5"))
    assert run.state.is_completed()
    assert run.printed.count("HttpTracker lacks") == 1
    assert "status 429" in run.printed
