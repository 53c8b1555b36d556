"""Asked to stop, a run saves, says how to go on and leaves nothing behind; going on, it ends as if never stopped."""

import contextlib
import hashlib
import json
import os
import shlex
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LINES = {"preparing data": "machine  ", "rendering": "data  ", "loading the model": "rendered  "}
_FIRST_STEP = "  step  1/16"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def trains_at_once(finished: Any, tmp_path: Path) -> tuple[str, ...]:
    """The finished run's words in a folder whose cache holds all that comes before the training."""
    return _named(finished[0].copy(tmp_path, "train", "package"), tmp_path)


def _named(place: Any, folder: Path) -> tuple[str, ...]:
    """Words by which the server's runs are told apart."""
    return (*place.words, f"run_name={folder.name}")


def _gone_within(processes: set[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_is_alive(process) for process in processes):
            return True
        time.sleep(0.05)
    return False


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _after_ctrl_c(running: Any) -> Any:
    """The end of a command that is asked to stop, with no process left."""
    family = running.family()
    running.signal(signal.SIGINT)
    stopped = running.end()
    assert _gone_within(family, 30)
    return stopped


def test_ctrl_c_in_training_saves_and_the_same_command_goes_on(
    finished: Any,
    trains_at_once: tuple[str, ...],
    start: Callable[..., Any],
    server: str,
    states: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    running = start(trains_at_once, PREFECT_API_URL=server)
    running.wait_for("  step  2/16")
    stopped = _after_ctrl_c(running)
    assert stopped.status == 130
    assert stopped.err == ""
    assert "saved at step" in stopped.out
    assert "step 16/16" not in stopped.out
    assert stopped.out.splitlines()[-2:] == [
        "stopped    what was done is saved; to go on, run the same command again:",
        "python -m flows.sft " + shlex.join(trains_at_once),
    ]
    assert states(tmp_path.name) == ["Cancelled"]

    again = start(trains_at_once, PREFECT_API_URL=server).end()
    assert again.status == 0, again.err
    assert "goes on from step" in again.out
    assert states(tmp_path.name) == ["Cancelled", "Completed"]
    (run_dir,) = (tmp_path / "runs").iterdir()
    undisturbed = finished[0].run_dir
    for name in ("metrics.jsonl", "model/adapter_model.safetensors", "eval/results.jsonl"):
        assert _sha256(run_dir / name) == _sha256(undisturbed / name), name


def test_term_in_training_saves_and_ends_with_143(
    trains_at_once: tuple[str, ...],
    start: Callable[..., Any],
    server: str,
    states: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    running = start(trains_at_once, PREFECT_API_URL=server)
    running.wait_for("  step  2/16")
    running.process.send_signal(signal.SIGTERM)
    stopped = running.end()
    assert stopped.status == 143
    assert stopped.err == ""
    assert "to go on, run the same command again" in stopped.out
    assert states(tmp_path.name) == ["Cancelled"]


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_ctrl_c_in_other_stages_ends_as_cleanly(
    line: str,
    words: tuple[str, ...],
    start: Callable[..., Any],
    server: str,
    states: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    running = start((*words, f"run_name={tmp_path.name}", "data.num_workers=2"), PREFECT_API_URL=server)
    running.wait_for(line)
    stopped = _after_ctrl_c(running)
    assert stopped.status == 130
    assert stopped.err == ""
    assert "Traceback" not in stopped.out
    assert _FIRST_STEP not in stopped.out
    assert states(tmp_path.name) == ["Cancelled"]


def test_ctrl_c_at_the_start_ends_at_once(words: tuple[str, ...], start: Callable[..., Any]) -> None:
    running = start(words)
    while len(running.family()) < 2:  # until there is a server to be left behind
        time.sleep(0.02)
    stopped = _after_ctrl_c(running)
    assert (stopped.status, stopped.out, stopped.err) == (130, "", "")


def test_a_killed_command_leaves_no_process_and_its_flow_run_is_crashed(
    words: tuple[str, ...], start: Callable[..., Any], tmp_path: Path
) -> None:
    running = start((*words, "data.num_workers=2"), PREFECT_HOME=str(tmp_path / "prefect"))
    running.wait_for("data  ")
    time.sleep(0.2)
    family = running.family()
    assert len(family) >= 2
    os.kill(running.process.pid, signal.SIGKILL)
    assert running.end().status == -signal.SIGKILL
    assert _gone_within(family, 30)
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:
        found = database.execute("select state_type, parameters from flow_run").fetchall()
    assert [state for state, _ in found] == ["CRASHED"]
    assert json.loads(found[0][1])["config"]["train"]["max_steps"] == 16
