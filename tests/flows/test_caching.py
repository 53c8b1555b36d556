"""What is done again and what is found: by the states of Prefect's task runs, and by the bytes on the disk."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train import wiring

ORDER = ["prepare model", "prepare data", "render", "evaluate before", "train", "evaluate after", "package"]
FOUND, MADE = "Cached", "Completed"


def _tree(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def place(finished: Any, tmp_path: Path) -> Any:
    """The finished run's cache, and nothing else."""
    return finished[0].copy(tmp_path)


def test_the_same_command_again_changes_no_byte(finished: Any, start: Callable[..., Any], server: str) -> None:
    place, first = finished
    before = _tree(place.run_dir)
    ended = start(place.words, place.folder, PREFECT_API_URL=server).end()
    assert ended.status == 0
    assert ended.err == ""
    assert _tree(place.run_dir) == before
    assert "this run was finished before; nothing was changed" in ended.out
    assert ended.out.splitlines()[-1] == first.out.splitlines()[-1]


def test_the_same_again_finds_every_stage_and_loads_no_model(
    place: Any, run_flow: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(wiring, "training_client", load)
    monkeypatch.setattr(wiring, "tokenizer", load)
    run = run_flow(place.config())
    assert run.tasks == [(name, FOUND) for name in ORDER]
    assert run.state.is_completed()


def test_another_learning_rate_trains_again_and_nothing_before(place: Any, run_flow: Callable[[Any], Any]) -> None:
    run = run_flow(place.config("train.learning_rate=2e-3", "train.max_steps=2"))
    assert run.tasks == [(name, FOUND if index < 4 else MADE) for index, name in enumerate(ORDER)]


def test_another_dataset_does_everything_again(
    place: Any, run_flow: Callable[[Any], Any], rows: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "rows.jsonl"
    changed.write_text(rows.read_text().replace("What is 3 plus", "Tell me 3 plus"))
    run = run_flow(place.config(f"dataset={changed}", "train.max_steps=2"))
    assert run.tasks == [(name, FOUND if index < 1 else MADE) for index, name in enumerate(ORDER)]


def test_a_win_rate_trains_nothing_again(place: Any, run_flow: Callable[[Any], Any], tmp_path: Path) -> None:
    run = run_flow(place.config("win_rate.num_prompts=3"))
    assert run.tasks == [*((name, FOUND) for name in ORDER[:-1]), ("win rate", MADE), ("package", MADE)], run.printed
    (run_dir,) = (tmp_path / "runs").iterdir()
    found = json.loads((run_dir / "eval" / "summary.json").read_text())["win_rate"]
    assert (found["num"], found["judge"]) == (3, "the model before training")
    rows = [json.loads(line) for line in (run_dir / "eval" / "results.jsonl").read_text().splitlines()]
    matches = [row for row in rows if row["kind"] == "match"]
    answers = {(row["row"], row["model"]): row["text"] for row in rows if row["kind"] == "answer"}
    # two of the three prompts were answered for the scores as well, by the same weights and seed
    assert [row["answers"]["y"] for row in matches[:2]] == [answers[row["row"], "before"] for row in matches[:2]]
    assert [row["answers"]["x"] for row in matches[:2]] == [answers[row["row"], "after"] for row in matches[:2]]
    assert "Answers beside those of the model before" in (run_dir / "report.html").read_text()
    assert "Win rate over the model before training: " in (run_dir / "summary.md").read_text()


def _blob_of(cache: Path, stage: str) -> Path:
    """The largest file of a stage's artifact."""
    (manifest,) = (cache / "manifests" / stage).iterdir()
    stored = cache / "cas" / "sha256"
    name = json.loads(manifest.read_text())["artifact"]["sha256"]
    entries = json.loads((stored / name[:2] / f"{name}.tree").read_text())
    digest = max(entries, key=lambda entry: entry["size"])["sha256"]
    return stored / digest[:2] / digest


def _deleted(blob: Path) -> None:
    blob.unlink()


def _flipped(blob: Path) -> None:
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)


@pytest.mark.parametrize(("harm", "word"), [(_deleted, "missing"), (_flipped, "damaged")])
def test_a_harmed_artifact_is_noticed_said_and_made_again(
    place: Any, run_flow: Callable[[Any], Any], harm: Callable[[Path], None], word: str
) -> None:
    blob = _blob_of(place.folder / "cache", "render")
    whole = blob.read_bytes()
    harm(blob)
    run = run_flow(place.config())
    assert run.tasks == [(name, MADE if name == "render" else FOUND) for name in ORDER]
    assert re.search(rf"cached render is made again: .*: the stored file is {word}", run.printed)
    assert blob.read_bytes() == whole


def test_two_commands_at_once_do_the_work_once(
    finished: Any, start: Callable[..., Any], server: str, tmp_path: Path
) -> None:
    words = finished[0].copy(tmp_path, "train", "package").words
    both = [start(words, PREFECT_API_URL=server) for _ in range(2)]
    ends = [running.end() for running in both]
    assert [ended.status for ended in ends] == [0, 0]
    assert [ended.err for ended in ends] == ["", ""]
    assert sum("  step 16/16" in ended.out for ended in ends) == 1
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert (run_dir / "metrics.jsonl").read_text().count("\n") == 17
    assert len(list((tmp_path / "cache" / "manifests" / "train").iterdir())) == 1
