"""The flow of distillation on the tiny model: what it leaves behind, and what a second run finds."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crucible_train.config.command import parse_command
from crucible_train.recipes.distill import DistillConfig
from crucible_train.stages.distill.plan import show_plan


def config_of(tiny_model: Path, folder: Path, *changes: str) -> DistillConfig:
    words = [
        f"model={tiny_model}",
        f"cache_dir={folder / 'cache'}",
        "report_to=[console]",
        f"output_dir={folder / 'runs'}",
        "env.options.num_held_out=4",
        "rollout.max_tokens=4",
        "train.max_steps=2",
        "train.groups_per_batch=2",
        "train.learning_rate=1e-2",
        "eval.num_step_problems=2",
        "engine.precision=float32",
        "engine.num_threads=1",
    ]
    return parse_command(DistillConfig, [*words, *changes], "distill").config


def test_a_run_is_measured_packaged_and_found_again(
    tiny_model: Path, tmp_path: Path, run_flow: Callable[..., Any], capsys: Any
) -> None:
    config = config_of(tiny_model, tmp_path)
    first = run_flow(config)
    assert first.state.is_completed(), first.printed
    names = ["prepare model", "evaluate before", "train", "evaluate after", "package"]
    assert [name for name, _ in first.tasks] == names
    run_dir = Path(asyncio.run(first.state.aresult()))
    left = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert {"config.json", "record.json", "metrics.jsonl", "report.html", "divergence.png", "eval/summary.json"} <= left
    assert any(name.endswith("adapter_model.safetensors") for name in left)
    page = (run_dir / "report.html").read_text()
    assert "the model before training with more to read" in page
    assert "teacher_kl" in page
    summary = json.loads((run_dir / "eval" / "summary.json").read_text())
    assert "eval/teacher_kl" in summary["before"]["metrics"]
    assert {row["name"] for row in summary["compared"]} >= {"reward", "correct", "teacher_kl"}
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert steps[1]["train/teacher_kl"] > 0

    second = run_flow(config)
    assert dict(second.tasks).keys() == set(names)
    assert {state for name, state in second.tasks} == {"Cached"}
    assert "nothing was changed" in second.printed
    show_plan(config)
    assert capsys.readouterr().out.count(" cached") == 4


def test_another_model_teaches(tiny_model: Path, tmp_path: Path, run_flow: Callable[..., Any]) -> None:
    """A second model, and for one kind of sums a third teacher; what was sampled is all that is compared."""
    words = ["teacher.kind=model", f"teacher.model={tiny_model}", "lesson.objective=reverse_kl", "train.max_steps=1"]
    others = json.dumps({"arithmetic/-": {"kind": "start", "before": [{"role": "user", "content": "5 - 3?"}]}})
    config = config_of(tiny_model, tmp_path, *words, "env.options.operations=[+, -]", f"teachers={others}")
    done = run_flow(config)
    assert done.state.is_completed(), done.printed
    assert [name for name, _ in done.tasks][:2] == ["prepare model", "prepare model"]
    run_dir = Path(asyncio.run(done.state.aresult()))
    row = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert any(name.startswith("train/kl_") for name in row)
