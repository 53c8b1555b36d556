"""Small run directories, and the command as a user calls it."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.config.command import parse_command
from crucible_train.config.redaction import redacted
from crucible_train.recipes.sft import SFTConfig

ROOT = Path(__file__).parents[2]
MakeRun = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]


def settings(*words: str) -> dict[str, Any]:
    return redacted(parse_command(SFTConfig, ["model=tiny", "dataset=rows.jsonl", *words], "sft").config)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run directory of supervised fine-tuning in ``runs``, as a flow leaves it."""

    def make(name: str, *words: str, losses: tuple[float, ...] = (3.0, 2.0), is_done: bool = True) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "eval").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(settings(*words)))
        records = [
            {"step": step, "train/loss": loss, "eval/nll": loss + 1, "optim/learning_rate": 0.1}
            for step, loss in enumerate(losses, 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / "timings.jsonl").write_text('{"step": 1, "time/step_s": 0.5}\n')
        if is_done:
            finish(folder, losses)
        return folder

    return make


def finish(folder: Path, losses: tuple[float, ...]) -> None:
    row = {
        "name": "nll",
        "before": {"value": losses[0] + 1},
        "after": {"value": losses[-1] + 1},
        "lower_is_better": True,
        "verdict": "better",
    }
    scored = row | {"name": "exact", "before": {"value": 0.0}, "after": {"value": 0.25}, "lower_is_better": False}
    (folder / "eval" / "summary.json").write_text(json.dumps({"compared": [row, scored]}))
    record = {
        "run_id": folder.name,
        "finished_at": "2026-11-30T06:20:46+00:00",
        "wall_time_s": 2.5,
        "artifacts": {"model": {"uri": "file:///a", "sha256": "ab" * 32, "kind": "external", "size": 1234}},
        "hardware": {"description": "CPU"},
        "final_metrics": {"eval/nll": losses[-1] + 1, "eval/exact": 1 / losses[-1]},
    }
    (folder / "record.json").write_text(json.dumps(record))


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The command in a process of its own, in the folder where ``runs`` lies and without a terminal."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "crucible_train.runs", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """The command at a terminal where an answer is typed: its exit status, and what it printed."""

    def run(answer: bytes, *words: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        try:
            os.write(ours, answer)
            done = subprocess.run(
                [sys.executable, "-m", "crucible_train.runs", *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=theirs,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            os.close(ours)
            os.close(theirs)
        return done.returncode, done.stdout

    return run
