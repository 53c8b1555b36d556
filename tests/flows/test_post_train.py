"""``python -m flows.post_train`` in this process: a chain runs whole, is found again, and goes on from what changed."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.config.command import parse_command
from crucible_train.recipes.post_train import PostTrainConfig
from crucible_train.runs.reading import Run, find_runs

FOUND, MADE = "Cached", "Completed"


@pytest.fixture
def config(tiny_model: Path, rows: Path, tmp_path: Path) -> Callable[..., PostTrainConfig]:
    """The configuration of a chain of short runs in the test's folder."""
    pairs = [{"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}.", "rejected": f"No, {i}."} for i in range(24)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    words = [f"model={tiny_model}", f"sft.dataset={rows}", f"dpo.dataset={path}", "cache_dir=cache", "report_to=[]"]
    for method in ("sft", "dpo", "distill"):
        words += [f"{method}.engine.precision=float32", f"{method}.engine.num_threads=1", f"{method}.engine.device=cpu"]
        words += [f"{method}.train.learning_rate=1e-2", f"{method}.train.max_steps=2"]
    for method in ("sft", "dpo"):
        words += [f"{method}.data.eval_split=0.25", f"{method}.train.per_device_train_batch_size=4"]
    words += ["sft.eval.num_samples=2", "sft.eval.max_new_tokens=8"]
    words += ["distill.env.options.num_held_out=4", "distill.rollout.max_tokens=4", "distill.train.groups_per_batch=2"]
    words += ["distill.eval.num_step_problems=2"]

    def make(*changes: str) -> PostTrainConfig:
        found: PostTrainConfig = parse_command(PostTrainConfig, [*words, *changes], "post_train").config
        return found

    return make


def by_stage(tasks: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The tasks of each stage of a chain, after the preparation of the first model."""
    found: list[list[tuple[str, str]]] = [[]]
    for name, state in tasks[1:]:
        found[-1].append((name, state))
        if name in ("merge", "evaluate last"):
            found.append([])
    return found[:-1]


def record_of(run: Any) -> Any:
    return json.loads((Path(asyncio.run(run.state.aresult())) / "record.json").read_text())


def test_a_chain_and_what_is_done_again(
    config: Callable[..., PostTrainConfig], run_flow: Callable[..., Any], tiny_model: Path
) -> None:
    first = run_flow(config())
    assert first.state.is_completed(), first.printed
    sft, dpo, measured = by_stage(first.tasks)
    ends = ["train", "evaluate after", "package", "merge"]
    assert sft[-4:] == dpo[-4:] == [(name, MADE) for name in ends]
    assert ("reference", MADE) in dpo
    assert measured == [
        ("prepare data", FOUND),
        ("render", FOUND),
        ("evaluate first", FOUND),  # sft measured the first model on these rows
        ("evaluate last", MADE),
    ]
    record = record_of(first)
    assert [stage["stage"] for stage in record["stages"]] == ["sft", "dpo"]
    assert record["artifacts"]["model"] == record["stages"][1]["model"]
    begun_from = [json.loads((Path(stage["run_dir"]) / "config.json").read_text()) for stage in record["stages"]]
    assert begun_from[0]["model"] == str(tiny_model)
    assert begun_from[1]["model"].endswith(record["stages"][0]["model"]["sha256"])
    (compared,) = record["evaluations"]
    (nll,) = (row for row in compared if row["name"] == "nll")
    assert nll["after"]["value"] != nll["before"]["value"]
    chain = Run(Path(asyncio.run(first.state.aresult())))
    assert (chain.method, chain.data, chain.status) == ("post_train", "sft > dpo > evaluate", "done")
    (shown,) = (change for change in chain.changes if change.name == "nll")
    assert (shown.before, shown.after) == (nll["before"]["value"], nll["after"]["value"])
    assert [run.path for run in find_runs(chain.path.parent)] == [
        *(Path(s["run_dir"]) for s in record["stages"]),
        chain.path,
    ]

    again = run_flow(config())
    assert again.tasks == [(name, FOUND) for name, _ in first.tasks]
    assert record_of(again) == record

    other = run_flow(config("dpo.preference.beta=0.3"))
    of_sft, of_dpo, _ = by_stage(other.tasks)
    assert of_sft == [(name, FOUND) for name, _ in sft]
    # rewards are scaled by beta, so the figures before training are other ones, too
    assert [name for name, state in of_dpo if state == MADE] == ["evaluate before", *ends]
    assert [name for name, state in other.tasks if state == MADE] == ["evaluate before", *ends, "evaluate last"]
    assert record_of(other)["stages"][0] == record["stages"][0]
    assert record_of(other)["artifacts"] != record["artifacts"]


def test_a_teacher_is_one_of_the_methods(config: Callable[..., PostTrainConfig], run_flow: Callable[..., Any]) -> None:
    found = run_flow(config("stages=[distill, evaluate]"))
    assert found.state.is_completed(), found.printed
    distill, measured = by_stage(found.tasks)
    assert [name for name, _ in distill][-4:] == ["train", "evaluate after", "package", "merge"]
    assert [name for name, _ in measured][-2:] == ["evaluate first", "evaluate last"]
    (stage,) = record_of(found)["stages"]
    assert (stage["stage"], stage["model"]) == ("distill", record_of(found)["artifacts"]["model"])
    steps = [json.loads(line) for line in (Path(stage["run_dir"]) / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert steps[1]["train/teacher_kl"] > 0
