"""Preferences, rewards and distillation in real trackers: every number once, in order, at its step; inputs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.config.command import parse_command
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.recipes.rl import RLConfig
from tests.tracking.conftest import HTTP, cursor, truth
from tests.tracking.http_tracker import TrackingServer
from tests.tracking.test_local_files import read_csv, read_tensorboard

SHARED = (
    "cache_dir=cache",
    "train.max_steps=3",
    "engine.precision=float32",
    "engine.num_threads=1",
    "engine.device=cpu",
)
PLAYED = ("rollout.max_tokens=4", "train.groups_per_batch=2", "train.num_generations=2", "eval.num_step_problems=2")
TRACKERS = f"report_to=[console, csv, tensorboard, mlflow, '{HTTP}']"


def preferences(folder: Path) -> tuple[Any, list[str]]:
    rows = [{"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}.", "rejected": f"No, {i}."} for i in range(16)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DPOConfig, [f"dataset={path}", "data.eval_split=0.25", "train.per_device_train_batch_size=4"]


def rewards(_: Path) -> tuple[Any, list[str]]:
    return RLConfig, ["env.name=gsm8k", "env.options={num_held_out: 4}", *PLAYED]


def distillation(_: Path) -> tuple[Any, list[str]]:
    return DistillConfig, ["env.options={num_held_out: 4}", *PLAYED[:2], *PLAYED[3:]]


INPUTS = {
    "preferences": {"pairs.jsonl": {"num_rows": 16}},
    "rewards": {"gsm8k": {"num_train": 196, "num_held_out": 4}, "sample.jsonl.gz": {}},
    "distillation": {"arithmetic": {"num_train": None, "num_held_out": 4}},
}


@pytest.mark.parametrize("given", [preferences, rewards, distillation], ids=list(INPUTS))
def test_a_run_is_whole_in_every_tracker(
    given: Callable[[Path], tuple[Any, list[str]]],
    request: pytest.FixtureRequest,
    tiny_model: Path,
    tmp_path: Path,
    run_flow: Callable[..., Any],
    tracker: TrackingServer,
    migrated_database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "runs").mkdir()
    shutil.copyfile(migrated_database, tmp_path / "runs" / "mlflow.db")
    config_type, words = given(tmp_path)
    words = [f"model={tiny_model}", *SHARED, *words, TRACKERS, "tracking.finish_wait_s=120"]
    run = run_flow(parse_command(config_type, words, "run").config)
    assert run.state.is_completed(), run.printed
    (run_dir,) = (path.parent for path in (tmp_path / "runs").glob("*/metrics.jsonl"))
    expected = truth(run_dir)
    assert [step for step, _ in expected] == [0, 1, 2, 3]
    assert "system/memory_gib" in expected[-1][1]
    for name in ("csv", "tensorboard", "mlflow"):
        assert cursor(run_dir, name)["state"] == "done", cursor(run_dir, name)

    assert tracker.only == expected
    (path,) = (run_dir / "tracking" / "csv").glob("*/metrics.csv")
    assert read_csv(path) == expected
    (folder,) = (tmp_path / "runs" / "tensorboard").iterdir()
    shown = {
        name: [(step, pytest.approx(v[name], rel=1e-6)) for step, v in expected if name in v]
        for name in _names(expected)
    }
    assert read_tensorboard(folder) == shown
    assert _mlflow_metrics(tmp_path) == {
        name.replace("+", "_"): [(step, values[name]) for step, values in expected if name in values]
        for name in _names(expected)
    }

    (events,) = tracker.events.values()
    told = {event["name"]: event for event in events if event["kind"] == "artifact"}
    for name, facts in INPUTS[request.node.callspec.id].items():
        assert (told[name]["of"], told[name]["is_input"]) == ("dataset", True)
        assert told[name]["facts"].items() >= facts.items()
    assert not told["adapter"]["is_input"]
    assert told["model"]["is_input"]
    record = json.loads((run_dir / "record.json").read_text())["artifacts"]
    links = {event["name"]: event["url"] for event in events if event["kind"] == "link"}
    assert links["link/input/model"] == record["model"]["uri"]
    assert links["link/output/adapter"] == record["trained"]["uri"]
    assert {(name, told[name]["digest"][:36]) for name in INPUTS[request.node.callspec.id]} == _mlflow_inputs(tmp_path)
    page = (run_dir / "report.html").read_text()
    assert page.count("The machine while it trained") == page.count("memory of the run, GiB") == 1


def _names(steps: list[tuple[int, dict[str, float]]]) -> set[str]:
    return {name for _, values in steps for name in values}


def _mlflow_run(folder: Path) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("crucible-train")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def _mlflow_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    client, run = _mlflow_run(folder)
    names = set(run.data.metrics) - {"crucible/last_step"}
    return {name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)] for name in names}


def _mlflow_inputs(folder: Path) -> set[tuple[str, str]]:
    _, run = _mlflow_run(folder)
    return {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs}
