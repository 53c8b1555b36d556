"""Judges from the command line: trained by ``flows.dpo`` and ``flows.sft``, put to work by ``flows.rl``."""

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crucible_train import wiring
from crucible_train.config.command import parse_command
from crucible_train.config.sections import EngineConfig, PeftConfig
from crucible_train.judges import (
    SCALAR_HEAD,
    Judge,
    Judgement,
    RewardJudge,
    position_bias,
)
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.recipes.sft import SFTConfig
from crucible_train.renderers import renderer_for
from crucible_train.rl.config import EnvConfig
from crucible_train.stages.dpo.plan import show_plan
from crucible_train.stages.rl.problems import judge_of
from crucible_train.types import Hardware, Message

HERE = Hardware("cpu", "float32", 1)
SHARED = ("cache_dir=cache", "report_to=[]", "engine.precision=float32", "engine.num_threads=1", "engine.device=cpu")
ORDER = ["prepare model", "prepare data", "render", "evaluate before", "train", "evaluate after", "package"]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run_rl(run_flow: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> Callable[[Path], list[dict[str, Any]]]:
    """Two steps of reinforcement learning by a judge; what was logged."""

    def run(judge: Path) -> list[dict[str, Any]]:
        prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"say {n}", "completion": "x"} for n in range(6)])
        words = (
            *("env.name=preference", f"env.options={{dataset: {prompts}, num_held_out: 2, judge: {judge}}}"),
            *("rollout.max_tokens=4", "rollout.temperature=30", "rollout.top_k=40", "rollout.on_error=fail_fast"),
            *("train.max_steps=2", "train.groups_per_batch=2", "train.num_generations=3", "run_name=rl"),
        )
        done = run_flow(parse_command(RLConfig, [f"model={tiny_model}", *SHARED, *words], "rl").config)
        assert done.state.is_completed(), done.printed
        (metrics,) = (tmp_path / "runs").glob("rl-*/metrics.jsonl")
        return [json.loads(line) for line in metrics.read_text().splitlines()]

    return run


def rewards_of(folder: Path, rows: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """What the model of a folder, opened as a judge, gives the answers of each row."""

    async def judge() -> list[tuple[float, float]]:
        _, renderer = renderer_for(str(folder), folder, None, wiring.tokenizer(folder), {})
        model = wiring.reward_model(
            folder, PeftConfig(use_peft=False), EngineConfig(), HERE, folder / "unused", name="judge", seed=7
        )
        try:
            of = RewardJudge(model, renderer)  # type: ignore[arg-type]
            answers = [[Message("assistant", row[side]) for side in ("chosen", "rejected")] for row in rows]
            asked = [[Message("user", row["prompt"])] for row in rows]
            return [tuple(await of.rewards(*one)) for one in zip(asked, answers, strict=True)]  # type: ignore[misc]
        finally:
            await model.close()

    return asyncio.run(judge())


def compared(draw: np.random.Generator) -> dict[str, Any]:
    """An answer is good or bad; two that are alike tie."""
    a, b = draw.integers(0, 2, 2)
    words = ("bad bad bad bad", "good good good good")
    return {
        "prompt": f"say {draw.integers(0, 100)}",
        "answer_a": words[a],
        "answer_b": words[b],
        "label": "Tie" if a == b else ("A" if a > b else "B"),
    }


def labels_of(folder: Path, rows: Sequence[dict[str, Any]], prompts: Path) -> list[Judgement]:
    """What the model of a folder says of each comparison, opened as reinforcement learning opens it."""

    async def judge() -> list[Judgement]:
        _, renderer = renderer_for(str(folder), folder, None, wiring.tokenizer(folder), {})
        env = EnvConfig(name="preference", options={"dataset": str(prompts), "judge": str(folder)})
        async with judge_of(env, (folder, renderer), EngineConfig(), HERE) as opened:
            assert isinstance(opened, Judge)
            pairs = [tuple(Message("assistant", row[side]) for side in ("answer_a", "answer_b")) for row in rows]
            return [
                found
                for row, pair in zip(rows, pairs, strict=True)
                for found in await opened.judge([Message("user", row["prompt"])], [pair])  # type: ignore[list-item]
            ]

    return asyncio.run(judge())


def louder(model: Path, folder: Path) -> Path:
    """The tiny model with larger weights, so that it soon heeds what it reads."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    loud = {name: weight * (6 if weight.ndim > 1 else 1) for name, weight in weights.items()}
    save_file(loud, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("use_peft", ["true", "false"], ids=["lora", "full"])
def test_a_reward_model_is_trained_packaged_and_judges(
    run_flow: Callable[..., Any],
    run_rl: Callable[[Path], list[dict[str, Any]]],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    use_peft: str,
) -> None:
    """Held-out accuracy rises to above 0.9, and the packaged folder gives the rewards that were measured.

    Where an adapter was trained, reinforcement learning is then judged by it; else the run is found again.
    """
    rows = [{"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}.", "rejected": f"No, {i}!"} for i in range(32)]
    data, held_out = write_rows(tmp_path / "pairs.jsonl", rows[8:]), write_rows(tmp_path / "held_out.jsonl", rows[:8])
    given = (
        *(f"model={tiny_model}", f"dataset={data}", f"data.eval_split={held_out}", f"peft.use_peft={use_peft}"),
        *("preference.loss_type=bradley_terry", "run_name=reward"),
        *("train.learning_rate=2e-2", "train.max_steps=12", "train.per_device_train_batch_size=8"),
    )
    config = parse_command(DPOConfig, [*given, *SHARED], "dpo").config
    first = run_flow(config)
    assert [name for name, _ in first.tasks] == ORDER, first.printed
    (run_dir,) = (tmp_path / "runs").glob("reward-*")
    results = [json.loads(line) for line in (run_dir / "eval" / "results.jsonl").read_text().splitlines()]
    before, after = (json.loads((run_dir / "eval" / "summary.json").read_text())[side] for side in ("before", "after"))
    assert before["num_preferences"] == after["num_preferences"] == 8
    assert after["metrics"]["eval/accuracy"] > 0.9
    assert after["metrics"]["eval/loss"] < before["metrics"]["eval/loss"]

    folder = run_dir / "model"
    assert (folder / SCALAR_HEAD).is_file()
    assert not (folder / "adapter_config.json").exists()
    assert "This is a reward model" in (folder / "README.md").read_text()
    measured = [row for row in results if row["model"] == "after"]
    found = rewards_of(folder, rows[:8])
    expected = [(row["chosen_reward"], row["rejected_reward"]) for row in measured]
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-4)
    assert np.argsort(np.array(found).ravel()).tolist() == np.argsort(np.array(expected).ravel()).tolist()

    if use_peft == "false":
        assert {state for _, state in run_flow(config).tasks} == {"Cached"}
        capsys.readouterr()
        show_plan(config)
        assert "nothing to do: all of it is cached" in capsys.readouterr().out
        return
    logged = run_rl(folder)
    assert [record["step"] for record in logged] == [0, 1, 2]
    assert all(-1 <= record["eval/preferred"] <= 1 for record in (logged[0], logged[2]))
    assert any(record["optim/grad_norm"] > 0 for record in logged[1:])


def test_a_label_judge_is_trained_and_judges(
    run_flow: Callable[..., Any], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Comparisons, ties among them, are learnt in both orders: no verdict flips, and a line tells the bias."""
    draw = np.random.default_rng(0)
    data = write_rows(tmp_path / "comparisons.jsonl", [compared(draw) for _ in range(240)])
    words = (
        *(f"model={louder(tiny_model, tmp_path / 'loud')}", f"dataset={data}", "run_name=label"),
        *("peft.use_peft=false", "train.learning_rate=1e-2", "train.max_steps=250"),
        *("eval.num_samples=0", "eval.eval_steps=0", "checkpoint.save_steps=0"),
    )
    done = run_flow(parse_command(SFTConfig, [*words, *SHARED], "sft").config)
    assert "240 rows, comparison (prompt, answer_a, answer_b, label)" in done.printed
    (run_dir,) = (tmp_path / "runs").glob("label-*")
    assert "This is a judge" in (run_dir / "model" / "README.md").read_text()
    rows = [compared(draw) for _ in range(24)]
    judgements = labels_of(run_dir / "model", rows, data)
    assert {row["label"] for row in rows} == {"A", "B", "Tie"}
    assert [(found.first.verdict, found.verdict) for found in judgements] == [(row["label"],) * 2 for row in rows]
    bias = position_bias(judgements)
    assert bias.flip_share == 0
    assert abs(bias.bias) < 0.1
    assert "24 pairs in both orders: position bias" in capsys.readouterr().out


def test_a_label_judge_trained_by_an_adapter_is_published_whole(
    run_flow: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    data = write_rows(tmp_path / "comparisons.jsonl", [compared(draw) for _ in range(16)])
    words = (f"model={tiny_model}", f"dataset={data}", "run_name=label", "train.max_steps=1", "eval.num_samples=0")
    run_flow(parse_command(SFTConfig, [*words, *SHARED], "sft").config)
    (run_dir,) = (tmp_path / "runs").glob("label-*")
    assert not (run_dir / "model" / "adapter_config.json").exists()
    (found,) = labels_of(run_dir / "model", [compared(draw)], data)
    assert 0 < found.first.tie < 1
