"""Runs of the recipe in this process, on a model and data made in a moment."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from crucible_train import checkpoints


@pytest.fixture(scope="session")
def trials() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_trials", Path(__file__).parents[1] / "crash" / "trial.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sft_world(trials: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    trials.make_world(folder)
    return folder


@pytest.fixture
def trial(trials: ModuleType, sft_world: Path, tmp_path: Path) -> Callable[..., Any]:
    """One start of the run in the test's folder; fields of the configuration by their paths."""

    def make(fields: dict[str, Any] | None = None, run_dir: Path = tmp_path / "run", **hooks: Any) -> Any:
        return trials.Trial(sft_world, run_dir, fields or {}, **hooks)

    return make


@pytest.fixture
def outcome() -> Callable[..., dict[str, Any]]:
    """What two runs must have in common: metrics, and every file of a checkpoint, the last one's by default."""

    def find(run_dir: Path, step: int | None = None) -> dict[str, Any]:
        folder = checkpoints.CheckpointFolder(run_dir)
        last = folder.path / checkpoints.checkpoint_name(folder.steps()[-1] if step is None else step)
        checkpoints.verify(last)
        assert not list(run_dir.rglob(".tmp-*"))
        return {
            "metrics": (run_dir / "metrics.jsonl").read_bytes(),
            "files": json.loads((last / checkpoints.MANIFEST).read_text())["files"],
        }

    return find


@pytest.fixture
def saved() -> Callable[[Path], list[int]]:
    """The steps of the checkpoints that are there and listed."""

    def find(run_dir: Path) -> list[int]:
        listed = [json.loads(line) for line in (run_dir / "checkpoints.jsonl").read_text().splitlines()]
        for entry in listed:
            assert entry["sha256"] == checkpoints.verify(run_dir / entry["path"])
        assert checkpoints.CheckpointFolder(run_dir).steps() == [entry["step"] for entry in listed]
        return [entry["step"] for entry in listed]

    return find


@pytest.fixture
def logged() -> Callable[[Path], list[dict[str, Any]]]:
    """The records of metrics.jsonl."""
    return lambda run_dir: [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
