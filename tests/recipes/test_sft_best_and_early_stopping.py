"""When a run ends by itself, which checkpoint is the best, and which ones are kept."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from crucible_train.errors import CheckpointError, ConfigError

EVERY_STEP = {
    "train.max_steps": 8,
    "eval.eval_steps": 1,
    "checkpoint.save_steps": 1,
    "checkpoint.save_total_limit": 2,
    "checkpoint.load_best_model_at_end": True,
}


def curve(*values: float, name: str = "eval/nll") -> Callable[[int], Awaitable[Mapping[str, float]]]:
    """The evaluation after step 1, after step 2, ..."""

    async def evaluations(step: int) -> Mapping[str, float]:
        return {name: values[step - 1]}

    return evaluations


@pytest.mark.parametrize(
    ("values", "fields", "num_steps", "best"),
    [
        ((5, 4, 4.5, 4.4, 3, 3, 3, 3), {"early_stopping_patience": 2}, 4, 2),
        ((5, 4, 4.5, 4.4, 3, 3, 3, 2), {"early_stopping_patience": 3}, 8, 8),
        ((5, 4, 4.5, 4.4, 3, 3, 3, 3), {}, 8, 5),
        ((5, 5, 5, 5, 5, 5, 5, 5), {"early_stopping_patience": 1}, 2, 1),
        ((1, 2, 3, 4, 5, 6, 7, 8), {"early_stopping_patience": 2}, 3, 1),
        ((1, 2, 3, 2.5, 4, 3, 3, 3), {"early_stopping_patience": 3, "greater_is_better": True}, 8, 5),
        ((8, 7.5, 7, 6.5, 6, 5.5, 5, 4.5), {"early_stopping_patience": 1, "early_stopping_threshold": 0.5}, 2, 2),
        ((8, 7.5, 7, 6.5, 6, 5.5, 5, 4.5), {"early_stopping_patience": 2, "early_stopping_threshold": 0.75}, 8, 8),
        ((8, 7.9, 7.8, 7.7, 7.6, 7.5, 7.4, 7.3), {"early_stopping_patience": 3, "early_stopping_threshold": 1}, 4, 4),
    ],
    ids=[
        "two evaluations without a gain",
        "three are not reached",
        "never",
        "an equal value is no gain",
        "from the first on",
        "a metric that is to rise",
        "a gain of the threshold does not count",
        "gains add up until they count",
        "a small gain makes a new best all the same",
    ],
)
def test_a_run_ends_when_it_no_longer_gains(
    values: tuple[float, ...], fields: dict[str, Any], num_steps: int, best: int, trial: Any, saved: Any
) -> None:
    made = trial(EVERY_STEP | {f"eval.{key}": value for key, value in fields.items()}, evaluations=curve(*values))
    result = made.run()
    assert (result.num_steps, result.stopped_early, result.published_step) == (num_steps, num_steps < 8, best)
    assert saved(made.run_dir) == sorted({best, num_steps - 1, num_steps})


def test_the_best_checkpoint_holds_the_weights_of_its_step(trial: Any, outcome: Any, tmp_path: Path) -> None:
    values = (5, 4, 3, 3.5, 3.6, 3.7, 3.8, 3.9)
    best = trial(EVERY_STEP | {"checkpoint.save_steps": 0}, evaluations=curve(*values))
    best.run()
    all_kept = trial(EVERY_STEP | {"checkpoint.save_total_limit": 9}, tmp_path / "all", evaluations=curve(*values))
    all_kept.run()
    assert outcome(best.run_dir, 3)["files"] == outcome(all_kept.run_dir, 3)["files"]


def test_without_it_the_last_step_is_published(trial: Any) -> None:
    fields = EVERY_STEP | {"checkpoint.load_best_model_at_end": False}
    assert trial(fields, evaluations=curve(1, 2, 3, 4, 5, 6, 7, 8)).run().published_step == 8


def test_any_logged_metric_may_choose(trial: Any) -> None:
    fields = EVERY_STEP | {"eval.metric_for_best_model": "eval/score", "eval.greater_is_better": True}
    assert trial(fields, evaluations=curve(1, 5, 2, 3, 1, 1, 1, 1, name="eval/score")).run().published_step == 2


def test_a_metric_that_is_never_measured_is_named_with_those_that_are(trial: Any) -> None:
    fields = EVERY_STEP | {"eval.metric_for_best_model": "eval/f1"}
    with pytest.raises(ConfigError, match=r"eval\.metric_for_best_model: 'eval/f1' is not measured; .*eval/nll"):
        trial(fields, evaluations=curve(*range(8))).run()


@pytest.mark.parametrize("stopped_at", [1, 2, 3, 4, 5])
def test_patience_and_the_best_survive_a_stop(stopped_at: int, trial: Any, outcome: Any, tmp_path: Path) -> None:
    fields = EVERY_STEP | {"eval.early_stopping_patience": 3, "eval.early_stopping_threshold": 0.2}
    evaluations = curve(5, 4, 3.9, 3.95, 3.85, 1, 1, 1)
    whole = trial(fields, tmp_path / "whole", evaluations=evaluations)
    expected = whole.run()
    assert (expected.num_steps, expected.published_step) == (5, 5)

    def on_step(step: int) -> None:
        if step == stopped_at:
            asyncio.current_task().cancel()

    stopped = trial(fields, evaluations=evaluations, on_step=on_step)
    if stopped_at < 5:
        with pytest.raises(asyncio.CancelledError):
            stopped.run()
    assert trial(fields, evaluations=evaluations).run() == expected
    assert outcome(stopped.run_dir) == outcome(whole.run_dir)


def test_a_damaged_best_checkpoint_is_noticed_before_training_goes_on(trial: Any, outcome: Any) -> None:
    fields = EVERY_STEP | {"checkpoint.save_total_limit": 9}
    evaluations = curve(5, 4, 3, 4, 4, 4, 4, 4)
    made = trial(fields, evaluations=evaluations)
    made.run()
    expected = outcome(made.run_dir, 3)["files"]
    weights = made.run_dir / "checkpoints" / "step-00000003" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    again = trial(fields, evaluations=evaluations)
    assert again.run().published_step == 3
    assert again.reports[-1].startswith("goes on from step 2 ")
    assert "the best one before it is lost" in again.reports[0]
    assert outcome(made.run_dir, 3)["files"] == expected


def test_a_best_checkpoint_that_nothing_can_bring_back_is_an_error(trial: Any) -> None:
    evaluations = curve(5, 4, 3, 4, 4, 4, 4, 4)
    made = trial(EVERY_STEP, evaluations=evaluations)
    made.run()
    (made.run_dir / "checkpoints" / "step-00000003" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="none of its 3 checkpoints is sound"):
        trial(EVERY_STEP, evaluations=evaluations).run()


@pytest.mark.parametrize(
    ("save_steps", "limit", "expected"),
    [(0, 9, [8]), (3, 9, [3, 6, 8]), (0.25, 9, [2, 4, 6, 8]), (1, 1, [8]), (1, 3, [6, 7, 8]), (100, 9, [8])],
)
def test_saves_follow_their_field_and_the_last_step_is_always_saved(
    save_steps: float, limit: int, expected: list[int], trial: Any, saved: Any
) -> None:
    fields = {"checkpoint.save_steps": save_steps, "checkpoint.save_total_limit": limit, "eval.eval_steps": 0}
    made = trial({"train.max_steps": 8} | fields)
    made.run()
    assert saved(made.run_dir) == expected


def test_saves_by_the_clock(trial: Any, saved: Any) -> None:
    fields = {"checkpoint.save_steps": 0, "checkpoint.save_total_limit": 9, "eval.eval_steps": 0}
    slow = {3: 0.2, 6: 0.2}
    made = trial(
        {"train.max_steps": 8, "checkpoint.save_minutes": 0.2 / 60} | fields,
        on_step=lambda step: time.sleep(slow.get(step, 0)),
    )
    made.run()
    steps = saved(made.run_dir)
    assert {3, 6, 8} <= {*steps}
    assert len(steps) < 8


@pytest.mark.parametrize(
    ("eval_steps", "expected"), [(0, [8]), (3, [3, 6, 8]), (0.25, [2, 4, 6, 8]), (0.01, [*range(1, 9)])]
)
def test_evaluations_follow_their_field_and_the_last_step_is_always_measured(
    eval_steps: float, expected: list[int], trial: Any, logged: Any
) -> None:
    made = trial({"train.max_steps": 8, "eval.eval_steps": eval_steps, "checkpoint.save_steps": 0})
    made.run()
    assert [record["step"] for record in logged(made.run_dir) if "eval/nll" in record] == [0, *expected]


def test_a_last_partial_batch_is_trained(trial: Any, logged: Any) -> None:
    made = trial({"train.max_steps": None, "train.num_train_epochs": 1, "checkpoint.save_steps": 0})
    made.run()
    assert [record.get("progress/epoch") for record in logged(made.run_dir)] == [None, 0.25, 0.5, 0.75, 1.0]


def test_the_clock_decides_nothing_but_saves(trial: Any, outcome: Any, tmp_path: Path) -> None:
    fields = {"checkpoint.save_total_limit": 99}
    made = trial(fields)
    made.run()
    hasty = trial(fields | {"checkpoint.save_minutes": 1e-9}, tmp_path / "hasty")
    hasty.run()
    assert len([*(hasty.run_dir / "checkpoints").iterdir()]) == 12
    assert outcome(hasty.run_dir) == outcome(made.run_dir)
