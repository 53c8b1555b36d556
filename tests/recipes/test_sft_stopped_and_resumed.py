"""However a run of the recipe is stopped, going on from there ends as if nothing had happened."""

import asyncio
import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_train import checkpoints
from crucible_train.adapters.torch_local.backend import LocalBackend
from crucible_train.data.examples import Example
from crucible_train.errors import CheckpointError, TrainingError
from crucible_train.recipes.sft import plan_of

EVERY_3 = {"train.max_steps": 8, "eval.eval_steps": 3, "checkpoint.save_steps": 3, "checkpoint.save_total_limit": 9}
NO_SAVES = EVERY_3 | {"checkpoint.save_steps": 0}


@pytest.fixture(scope="module")
def undisturbed(trials: Any, sft_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run that nothing happened to. Not to be written to."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    trials.Trial(sft_world, run_dir, EVERY_3).run()
    return run_dir


async def cancelled_by(train: Any, ask: Any) -> None:
    """Start training and let ``ask`` decide, with the loop and the task, when to cancel it."""
    task = asyncio.create_task(train)
    asyncio.get_running_loop().call_soon(ask, asyncio.get_running_loop(), task)
    with pytest.raises(asyncio.CancelledError):
        await task


def weights_of(outcome: dict[str, Any]) -> Any:
    return {name: entry for name, entry in outcome["files"].items() if name.endswith(".safetensors")}


def assert_ends_alike(trial: Any, outcome: Any, undisturbed: Path) -> None:
    made = trial(EVERY_3)
    made.run()
    found, expected = outcome(made.run_dir), outcome(undisturbed)
    assert found["metrics"] == expected["metrics"]
    assert weights_of(found) == weights_of(expected)


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_cancelled_after_a_step_it_has_saved_that_step(step: int, trial: Any, outcome: Any, undisturbed: Path) -> None:
    def on_step(logged: int) -> None:
        if logged == step:
            asyncio.current_task().cancel()

    stopped = trial(NO_SAVES, on_step=on_step)
    with pytest.raises(asyncio.CancelledError):
        stopped.run()
    assert stopped.reports == [f"saved at step {step}"]
    assert checkpoints.CheckpointFolder(stopped.run_dir).steps() == [step]
    assert_ends_alike(trial, outcome, undisturbed)


@pytest.mark.parametrize("method", ["_pass", "_step"])
@pytest.mark.parametrize("call", [0, 2, 4])
def test_cancelled_while_the_engine_computes(
    method: str, call: int, trial: Any, outcome: Any, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, num_calls = getattr(LocalBackend, method), 0
    is_asked = threading.Event()
    asking: list[Any] = []

    def slow(self: LocalBackend, *args: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call + 1:
            loop, task = asking
            loop.call_soon_threadsafe(lambda: (task.cancel(), is_asked.set()))
            is_asked.wait(10)
            time.sleep(0.02)
        return original(self, *args)

    monkeypatch.setattr(LocalBackend, method, slow)
    asyncio.run(cancelled_by(trial(NO_SAVES).train(), lambda loop, task: asking.extend([loop, task])))
    assert is_asked.is_set()
    assert_ends_alike(trial, outcome, undisturbed)


def test_cancelled_in_an_evaluation_it_evaluates_again(trial: Any, outcome: Any, undisturbed: Path) -> None:
    async def never_ends(step: int) -> dict[str, float]:
        asyncio.current_task().cancel()
        await asyncio.sleep(60)
        return {}

    stopped = trial(NO_SAVES, evaluations=never_ends)
    with pytest.raises(asyncio.CancelledError):
        stopped.run()
    assert stopped.reports == ["saved at step 3"]
    assert_ends_alike(trial, outcome, undisturbed)


def test_cancelled_in_the_evaluation_after_the_last_step(trial: Any, outcome: Any, undisturbed: Path) -> None:
    async def stuck_at_the_end(step: int) -> dict[str, float]:
        if step == 8:
            asyncio.current_task().cancel()
            await asyncio.sleep(60)
        raise AssertionError

    first = trial(EVERY_3, on_step=lambda step: asyncio.current_task().cancel() if step == 7 else None)
    with pytest.raises(asyncio.CancelledError):
        first.run()
    with pytest.raises(asyncio.CancelledError):
        trial(EVERY_3, evaluations=stuck_at_the_end).run()
    assert_ends_alike(trial, outcome, undisturbed)


@pytest.mark.parametrize("seed", range(6))
def test_cancelled_at_random_moments(seed: int, trial: Any, outcome: Any, undisturbed: Path) -> None:
    draw = random.Random(seed)
    for _ in range(3):
        delay = draw.random() * 0.2

        async def stop_after(delay: float) -> None:
            task = asyncio.create_task(trial(EVERY_3).train())
            asyncio.get_running_loop().call_later(delay, task.cancel)
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None

        asyncio.run(stop_after(delay))
    assert_ends_alike(trial, outcome, undisturbed)


@pytest.mark.parametrize("name", ["step-00000003", "step-00000008"])
def test_cancelled_while_a_save_is_written_it_ends_that_save_and_does_not_repeat_it(
    name: str, trial: Any, outcome: Any, saved: Any, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, asking, written = checkpoints.write_checkpoint, [], []

    def slow(folder: Path, *args: Any) -> str:
        written.append(folder.name)
        if folder.name == name:
            time.sleep(0.02)
            loop, task = asking
            loop.call_soon_threadsafe(task.cancel)
            time.sleep(0.05)
        return write(folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_checkpoint", slow)
        asyncio.run(cancelled_by(trial(EVERY_3).train(), lambda loop, task: asking.extend([loop, task])))
    assert len(written) == len({*written})
    assert [checkpoints.checkpoint_name(step) for step in saved(trial().run_dir)] == written
    assert_ends_alike(trial, outcome, undisturbed)


def test_a_step_that_fails_while_a_save_fails_is_reported_and_the_state_is_saved(
    trial: Any, outcome: Any, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, train_pass, num_passes, has_failed = checkpoints.write_checkpoint, LocalBackend._sum_over, [], []

    def slow_and_full(folder: Path, *args: Any) -> str:
        if not has_failed:
            has_failed.append(folder.name)
            time.sleep(0.2)
            raise CheckpointError("the disk is full for a moment")
        return write(folder, *args)

    def fails_in_step_5(self: LocalBackend, datums: Any, loss: Any, with_gradient: bool) -> Any:
        num_passes.append(with_gradient)
        if sum(num_passes) == 5:
            raise RuntimeError("out of memory")
        return train_pass(self, datums, loss, with_gradient)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_checkpoint", slow_and_full)
        patch.setattr(LocalBackend, "_sum_over", fails_in_step_5)
        failing = trial(EVERY_3)
        with pytest.raises(TrainingError, match="out of memory"):
            failing.run()
    assert has_failed == ["step-00000003"]
    assert failing.reports == ["saved at step 4"]
    assert_ends_alike(trial, outcome, undisturbed)


def test_steps_are_taken_while_a_save_is_written(
    trial: Any, outcome: Any, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is so slow that the first save can begin to write only when two more steps are done."""
    are_done, mkdir, waits = threading.Event(), os.mkdir, []

    def slow(path: Any, *args: Any) -> None:
        if threading.current_thread().name == "crucible-writer" and not waits:
            waits.append(are_done.wait(20))
        mkdir(path, *args)

    monkeypatch.setattr(os, "mkdir", slow)
    made = trial(EVERY_3, on_step=lambda step: are_done.set() if step == 5 else None)
    made.run()
    assert waits == [True]
    assert outcome(made.run_dir, 3) == outcome(undisturbed, 3), "what is saved is the state when it was asked for"


def bad_example(step: int, change: Any, trials: Any) -> Any:
    """Damage the first example of the batch of a step."""
    index = int(plan_of(trials.config_of(EVERY_3), trials.NUM_EXAMPLES).batch(step)[0])

    def change_examples(examples: list[Example]) -> list[Example]:
        old = examples[index]
        tokens, weights = change(old.tokens_T.copy(), old.weights_T.copy())
        examples[index] = Example(tokens, weights, old.row, old.num_bytes)
        return examples

    return change_examples


FAULTS = {
    "a loss that is no number": lambda tokens, weights: (tokens, weights * np.float32("nan")),
    "a token outside the vocabulary": lambda tokens, weights: (tokens + 1000, weights),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_fails_stops_the_run_at_the_last_good_state(
    fault: str, trials: Any, trial: Any, outcome: Any, undisturbed: Path
) -> None:
    failing = trial(NO_SAVES, change_examples=bad_example(3, FAULTS[fault], trials))
    with pytest.raises(TrainingError):
        failing.run()
    step = checkpoints.CheckpointFolder(failing.run_dir).steps()[-1]
    assert failing.reports == [f"saved at step {step}"]
    assert 1 <= step <= 3
    with pytest.raises(TrainingError):
        trial(NO_SAVES, change_examples=bad_example(3, FAULTS[fault], trials)).run()
    assert_ends_alike(trial, outcome, undisturbed)


@pytest.mark.parametrize("method", ["_sum_over", "_step"])
def test_an_engine_that_fails_stops_the_run_at_the_last_good_state(
    method: str, trial: Any, outcome: Any, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, num_calls = getattr(LocalBackend, method), 0

    def failing(self: LocalBackend, *args: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 5:
            raise RuntimeError("out of memory")
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, method, failing)
        with pytest.raises(TrainingError, match="out of memory"):
            trial(NO_SAVES).run()
    assert checkpoints.CheckpointFolder(trial().run_dir).steps()
    assert_ends_alike(trial, outcome, undisturbed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_evaluation_that_is_no_number_stops_the_run(
    value: float, trial: Any, outcome: Any, undisturbed: Path
) -> None:
    async def evaluations(step: int) -> dict[str, float]:
        return {"eval/nll": value}

    failing = trial(NO_SAVES, evaluations=evaluations)
    with pytest.raises(TrainingError, match=f"eval/nll is {value} at step 3"):
        failing.run()
    assert failing.reports == ["saved at step 3"]
    assert_ends_alike(trial, outcome, undisturbed)


def test_a_finished_run_started_again_changes_nothing_and_gives_the_same_result(
    trial: Any, outcome: Any, undisturbed: Path
) -> None:
    first = trial(EVERY_3)
    result = first.run()
    assert first.starts == [0]
    found = outcome(trial().run_dir)
    again = trial(EVERY_3)
    assert again.run() == result
    assert again.starts == [8]
    assert outcome(again.run_dir) == found
    assert again.reports == [f"goes on from step 8 ({again.run_dir}/checkpoints/step-00000008)"]


@pytest.mark.parametrize("index", range(6))
def test_a_damaged_file_is_reported_and_the_checkpoint_before_it_used(
    index: int, trial: Any, outcome: Any, undisturbed: Path
) -> None:
    run_dir = Path(shutil.copytree(undisturbed, trial().run_dir))
    path = sorted((run_dir / "checkpoints" / "step-00000008").iterdir())[index]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    resumed = trial(EVERY_3)
    resumed.run()
    its = "its " if path.name == "manifest.json" else ""
    assert resumed.reports == [
        f"checkpoint passed over: {path.parent}: {its}{path.name} is damaged",
        f"goes on from step 6 ({run_dir}/checkpoints/step-00000006)",
    ]
    assert outcome(run_dir) == outcome(undisturbed)


def test_a_run_whose_checkpoints_are_all_damaged_never_begins_anew(trial: Any, undisturbed: Path) -> None:
    run_dir = Path(shutil.copytree(undisturbed, trial().run_dir))
    for weights in run_dir.glob("checkpoints/*/adapter_model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    refused = trial(EVERY_3)
    with pytest.raises(CheckpointError, match="checkpoints: none of its 3 checkpoints is sound"):
        refused.run()
    assert len(refused.reports) == 3
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_run_whose_checkpoints_are_gone_never_begins_anew(trial: Any, undisturbed: Path) -> None:
    run_dir = Path(shutil.copytree(undisturbed, trial().run_dir))
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(CheckpointError, match="none of its 3 checkpoints is sound"):
        trial(EVERY_3).run()


def test_never_begins_anew(trial: Any, outcome: Any, undisturbed: Path) -> None:
    run_dir = Path(shutil.copytree(undisturbed, trial().run_dir))
    for weights in run_dir.glob("checkpoints/*/adapter_model.safetensors"):
        weights.unlink()
    anew = trial(EVERY_3 | {"checkpoint.resume_from_checkpoint": "never"})
    anew.run()
    assert anew.reports == []
    assert outcome(run_dir) == outcome(undisturbed)


@pytest.mark.parametrize("is_relative", [False, True])
def test_a_path_in_the_run_goes_back_to_there(
    is_relative: bool, trial: Any, outcome: Any, saved: Any, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = Path(shutil.copytree(undisturbed, trial().run_dir))
    monkeypatch.chdir(run_dir)
    path = Path("checkpoints") / "step-00000003"
    fields = EVERY_3 | {"checkpoint.resume_from_checkpoint": str(path if is_relative else run_dir / path)}
    seen: list[int] = []
    trial(fields, on_step=seen.append).run()
    assert seen == [4, 5, 6, 7, 8]
    assert saved(run_dir) == [3, 6, 8]
    assert outcome(run_dir) == outcome(undisturbed)


def test_a_path_in_another_run_goes_on_from_it_and_drops_what_is_here(
    trial: Any, outcome: Any, saved: Any, undisturbed: Path
) -> None:
    trial(EVERY_3 | {"train.max_steps": 30, "checkpoint.save_steps": 10}).run()
    path = undisturbed / "checkpoints" / "step-00000003"
    made = trial(EVERY_3 | {"checkpoint.resume_from_checkpoint": str(path)})
    made.run()
    assert saved(made.run_dir) == [6, 8]
    assert weights_of(outcome(made.run_dir)) == weights_of(outcome(undisturbed))
    assert outcome(made.run_dir)["metrics"] == outcome(undisturbed)["metrics"]
    assert_ends_alike(trial, outcome, undisturbed)


def test_the_best_of_another_run_is_not_the_best_of_this_one(trial: Any, undisturbed: Path) -> None:
    async def rising(step: int) -> dict[str, float]:
        return {"eval/nll": float(step)}

    path = undisturbed / "checkpoints" / "step-00000003"
    fields = EVERY_3 | {"checkpoint.load_best_model_at_end": True, "checkpoint.resume_from_checkpoint": str(path)}
    made = trial(fields, evaluations=rising)
    assert made.run().published_step == 6
    assert checkpoints.verify(made.run_dir / "checkpoints" / "step-00000006")


@pytest.mark.parametrize("name", ["step-00000099", "step-00000003"])
def test_a_path_that_is_no_sound_checkpoint_is_refused(name: str, trial: Any, undisturbed: Path) -> None:
    run_dir = Path(shutil.copytree(undisturbed, trial().run_dir))
    (run_dir / "checkpoints" / "step-00000003" / "loop.json").unlink()
    path = run_dir / "checkpoints" / name
    with pytest.raises(CheckpointError, match=name):
        trial(EVERY_3 | {"checkpoint.resume_from_checkpoint": str(path)}).run()
