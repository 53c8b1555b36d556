"""``python -m flows.dpo`` in this process: what it leaves, and what another configuration does again."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.config.command import parse_command
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.stages.dpo.plan import show_plan

GIVEN = ["prepare model", "prepare data", "render", "reference"]
ORDER = [*GIVEN, "evaluate before", "train", "evaluate after", "package"]
FOUND, MADE = "Cached", "Completed"


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Callable[..., DPOConfig]:
    """The configuration of a run of six steps in the test's folder; two rows are of no use."""
    rows = [{"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}.", "rejected": f"No, {i}."} for i in range(24)]
    rows += [rows[0] | {"rejected": rows[0]["chosen"]}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (
        *(f"model={tiny_model}", f"dataset={path}", "cache_dir=cache", "data.eval_split=0.25", "report_to=[]"),
        *("train.learning_rate=1e-2", "train.max_steps=6", "train.per_device_train_batch_size=4"),
        *("engine.precision=float32", "engine.num_threads=1", "engine.device=cpu"),
    )

    def make(*changes: str) -> DPOConfig:
        found: DPOConfig = parse_command(DPOConfig, [*words, *changes], "dpo").config
        return found

    return make


def test_a_run_and_what_is_done_again(
    config: Callable[..., DPOConfig], run_flow: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    first = run_flow(config())
    assert first.tasks == [(name, FOUND if name == "prepare model" else MADE) for name in ORDER], first.printed
    assert "24 preferences, pairs (chosen, rejected); not used: 2 equal_sides" in first.printed
    (run_dir,) = (tmp_path / "runs").iterdir()
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(7))
    assert (records[0]["eval/accuracy"], records[0]["eval/margin"]) == (0.5, 0)
    for name in ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logprob", "kl"):
        assert f"train/{name}" in records[1]
        assert f"eval/{name}" in records[6]
    compared = json.loads((run_dir / "eval" / "summary.json").read_text())["compared"]
    assert [(row["name"], row["num"]) for row in compared] == [("accuracy", 6), ("margin", 6), ("loss", 6)]
    results = [json.loads(line) for line in (run_dir / "eval" / "results.jsonl").read_text().splitlines()]
    assert [row["model"] for row in results] == ["before"] * 6 + ["after"] * 6
    page = (run_dir / "report.html").read_text()
    assert "Held-out preferences" in page
    assert "margin of rewards" in page
    assert (run_dir / "model" / "adapter_model.safetensors").is_file()
    assert "tags: [crucible-train, dpo]" in (run_dir / "model" / "README.md").read_text()
    assert len((run_dir / "quarantine.jsonl").read_text().splitlines()) == 2

    again = run_flow(config())
    assert again.tasks == [(name, FOUND) for name in ORDER]

    capsys.readouterr()
    show_plan(config())
    shown = capsys.readouterr().out
    assert shown.count("cached") >= 7
    assert "nothing to do: all of it is cached" in shown

    other = run_flow(config("preference.beta=0.3"))
    # rewards are scaled by beta, so the loss before training is found anew, from the reference that is there
    assert [name for name, state in other.tasks if state == MADE] == ORDER[len(GIVEN) :]
    assert [name for name, state in other.tasks if state == FOUND] == GIVEN


def test_a_judge_compares_the_answers_before_and_after(
    config: Callable[..., DPOConfig],
    run_flow: Callable[..., Any],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    order = [*ORDER[:-1], "win rate", "package"]
    asked = ("win_rate.num_prompts=4", "eval.max_new_tokens=6", "report_to=[csv]")

    first = run_flow(config(*asked))
    assert [name for name, _ in first.tasks] == order, first.printed
    assert "4 pairs of answers in both orders by the model before training" in first.printed
    (run_dir,) = (tmp_path / "runs").iterdir()
    found = json.loads((run_dir / "eval" / "summary.json").read_text())["win_rate"]
    results = [json.loads(line) for line in (run_dir / "eval" / "results.jsonl").read_text().splitlines()]
    verdicts = [row["verdict"] for row in results if row["kind"] == "match"]
    assert found["num"] == len(verdicts) == 4
    assert found["win_rate"]["value"] == (verdicts.count("x") + verdicts.count("tie") / 2) / 4
    assert found["win_rate"]["low"] < found["win_rate"]["value"] < found["win_rate"]["high"]
    record = json.loads((run_dir / "record.json").read_text())
    assert record["final_metrics"]["eval/win_rate"] == found["win_rate"]["value"]
    assert {"eval/position_bias", "eval/position_flips", "eval/accuracy"} <= record["final_metrics"].keys()
    *_, last = csv.DictReader(next(run_dir.glob("tracking/csv/*/metrics.csv")).open())
    assert (last["step"], float(last["eval/win_rate"])) == ("6", found["win_rate"]["value"])
    assert float(last["train/loss"]) > 0
    assert "Answers beside those of the model before" in (run_dir / "report.html").read_text()
    for path in (run_dir / "summary.md", run_dir / "model" / "README.md"):
        assert "Win rate over the model before training: " in path.read_text()

    assert run_flow(config(*asked)).tasks == [(name, FOUND) for name in order]
    capsys.readouterr()
    show_plan(config(*asked))
    shown = " ".join(capsys.readouterr().out.split())
    for line in ("answer before cached", "answer after cached", "win rate cached", "package cached"):
        assert line in shown
    assert "4 held-out prompts, answered by both models in up to 6 tokens" in shown

    judge = shutil.copytree(tiny_model, tmp_path / "judge")
    (judge / "special_tokens_map.json").write_text("{}")
    other = run_flow(config(*asked, f"win_rate.judge={judge}"))
    # the answers are those that are there: a judge is what is new
    assert [name for name, state in other.tasks if state == MADE] == ["win rate", "package"]
    assert [name for name, _ in other.tasks] == ["prepare model", "prepare judge", *order[1:]]
    assert "answering" not in other.printed
    assert len(list((tmp_path / "cache" / "manifests" / "answer_preferences").iterdir())) == 2


def test_a_loss_without_a_reference_computes_none(
    config: Callable[..., DPOConfig], run_flow: Callable[..., Any], tmp_path: Path
) -> None:

    found = run_flow(config("preference.loss_type=simpo", "train.max_steps=2"))
    assert [name for name, _ in found.tasks] == [name for name in ORDER if name != "reference"], found.printed
    (metrics,) = (tmp_path / "runs").glob("*/metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert not any("kl" in name for record in records for name in record)
    assert {"eval/loss", "eval/accuracy", "eval/margin"} <= records[0].keys() & records[2].keys()
