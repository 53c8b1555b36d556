"""However a run is stopped, going on from there ends as if nothing had happened.

Off policy that is so from a checkpoint that was made between two steps; one that is made in haste leaves out what is
being played, which newer weights answer then: no problem is lost or repeated, but the curve may be another.
"""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from crucible_train import checkpoints, files
from crucible_train.errors import TrainingError
from crucible_train.recipes.rl import ROLLOUTS_FILE
from tests.rl import toy
from tests.rl.conftest import outcome_of, rows_of

SIX = {
    "train.max_steps": 6,
    "train.groups_per_batch": 4,
    "train.num_generations": 8,
    "checkpoint.save_steps": 2,
    "checkpoint.save_total_limit": 9,
}
EXACT: dict[str, dict[str, Any]] = {
    "synchronous": {"algorithm.measure_post_kl": True},
    "substeps": {"algorithm.num_substeps": 2, "algorithm.loss": "ppo"},
    "resampled": {"algorithm.max_resampling_rounds": 2},
    "streamed": {"schedule.mode": "streamed", "algorithm.normalisation": "sequence", "schedule.num_minibatches": 2},
}
AHEAD: dict[str, dict[str, Any]] = {
    "one ahead": {"schedule.mode": "off_policy"},
    "two ahead": {"schedule.mode": "off_policy", "schedule.max_steps_off_policy": 2},
    "resampled": {"schedule.mode": "off_policy", "algorithm.max_resampling_rounds": 1},
}


@pytest.fixture(scope="module")
def undisturbed(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run directory of a run that nothing happened to. Not to be written to."""
    known: dict[str, Path] = {}

    def find(fields: dict[str, Any]) -> Path:
        key = repr(sorted(fields.items()))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("undisturbed") / "run"
            toy.Trial(toy_model, known[key], fields).run()
        return known[key]

    return find


def stopped_at(trial: Any, fields: dict[str, Any], event: str, call: int, **hooks: Any) -> Any:
    """A run that is cancelled at the n-th call of its client of one kind."""
    calls, tasks = 0, []

    def tell(name: str) -> None:
        nonlocal calls
        calls += name == event
        if name == event and calls == call:
            tasks[0].cancel()

    made = trial(fields, wrap=lambda client: toy.Told(client, tell), **hooks)

    async def run() -> None:
        tasks.append(asyncio.create_task(made.train()))
        await asyncio.wait(tasks)

    asyncio.run(run())
    assert tasks[0].cancelled(), "it was not stopped"
    return made


def gone_on(trial: Any, fields: dict[str, Any], **hooks: Any) -> Any:
    made = trial(fields, **hooks)
    made.run()
    return made


def problems_of(*trials: Any) -> list[str]:
    """What each step was trained on, where later starts count."""
    steps = {step: [one.group.problem for one in groups] for made in trials for step, groups in made.shown}
    assert sorted(steps) == [*range(1, 7)]
    return [name for step in sorted(steps) for name in steps[step]]


def assert_none_lost_or_repeated(*trials: Any) -> None:
    names = problems_of(*trials)
    assert names == [f"echo {index}" for index in range(len(names))]
    assert len(names) >= 24


def kept_rollouts(run_dir: Path) -> Any:
    """What the newest checkpoint keeps of rollouts."""
    step = checkpoints.CheckpointFolder(run_dir).steps()[-1]
    return files.read_json(run_dir / "checkpoints" / checkpoints.checkpoint_name(step) / ROLLOUTS_FILE)


@pytest.mark.parametrize("way", EXACT)
@pytest.mark.parametrize("step", [1, 4])
def test_cancelled_after_a_step_it_has_saved_that_step(way: str, step: int, trial: Any, undisturbed: Any) -> None:
    fields = SIX | EXACT[way]
    stopped = trial(fields, on_step=lambda logged: asyncio.current_task().cancel() if logged == step else None)
    with pytest.raises(asyncio.CancelledError):
        stopped.run()
    assert stopped.reports == [f"saved at step {step}"]
    again = gone_on(trial, fields)
    assert outcome_of(again.run_dir) == outcome_of(undisturbed(fields))
    assert_none_lost_or_repeated(stopped, again)


POINTS = [("sample", 5), ("sample", 100), ("forward_backward", 4), ("optim_step", 3)]


@pytest.mark.parametrize("way", EXACT)
@pytest.mark.parametrize(("event", "call"), POINTS)
def test_cancelled_in_a_step(way: str, event: str, call: int, trial: Any, undisturbed: Any) -> None:
    """While it samples; between gradient and optimizer step; in the optimizer step, so between substeps too."""
    fields = SIX | EXACT[way]
    stopped_at(trial, fields, event, call)
    assert outcome_of(gone_on(trial, fields).run_dir) == outcome_of(undisturbed(fields))


@pytest.mark.parametrize("way", ["synchronous", "streamed"])
@pytest.mark.parametrize("num_answers", [100])
def test_cancelled_where_some_answers_are_there(way: str, num_answers: int, trial: Any, undisturbed: Any) -> None:
    """A batch of which some groups are finished is played again as a whole, so that it is the same to the bit."""
    fields, judged, tasks = SIX | EXACT[way], [], []

    def judge(symbol: int, tokens: Sequence[int]) -> float:
        judged.append(symbol)
        if len(judged) == num_answers:
            tasks[0].cancel()
        return toy.is_right(symbol, tokens)

    async def run() -> None:
        tasks.append(asyncio.create_task(trial(fields, problems=toy.Echoes(judge)).train()))
        await asyncio.wait(tasks)

    asyncio.run(run())
    assert tasks[0].cancelled()
    assert outcome_of(gone_on(trial, fields).run_dir) == outcome_of(undisturbed(fields))


@pytest.mark.parametrize("fields", [SIX, SIX | AHEAD["one ahead"]], ids=["synchronous", "off policy"])
@pytest.mark.parametrize("call", [50])
def test_cancelled_in_episodes_of_several_turns(call: int, fields: dict[str, Any], trial: Any) -> None:
    stopped = stopped_at(trial, fields, "sample", call, problems=toy.Echoes(num_turns=3))
    again = gone_on(trial, fields, problems=toy.Echoes(num_turns=3))
    assert_none_lost_or_repeated(stopped, again)
    if fields is SIX:  # off policy, games that were not finished are answered by newer weights
        whole = trial(fields, "whole", problems=toy.Echoes(num_turns=3))
        whole.run()
        assert outcome_of(again.run_dir) == outcome_of(whole.run_dir)


@pytest.mark.parametrize("fields", [SIX, SIX | AHEAD["one ahead"]], ids=["synchronous", "off policy"])
def test_episodes_of_several_turns_give_the_same_bits_again(fields: dict[str, Any], trial: Any) -> None:
    """In lockstep, what is computed together does not follow from the clock."""
    runs = [trial(fields, name, problems=toy.Echoes(num_turns=3)) for name in ("one", "other")]
    for run in runs:
        run.run()
    assert outcome_of(runs[0].run_dir) == outcome_of(runs[1].run_dir)


def test_stopped_between_two_substeps_the_newest_checkpoint_is_where_it_goes_on(trial: Any, undisturbed: Any) -> None:
    """The sixth optimizer step is the second of the third batch; the fifth is done, and its weights are of no use."""
    fields = SIX | EXACT["substeps"] | {"algorithm.remove_constant_groups": False}
    stopped = stopped_at(trial, fields, "forward_backward", 6)
    assert stopped.reports == ["stopped in the middle of a step; the newest checkpoint is where it goes on"]
    assert checkpoints.CheckpointFolder(stopped.run_dir).steps() == [2]
    again = gone_on(trial, fields)
    assert again.problems.played[:4] == [8, 9, 10, 11]
    assert outcome_of(again.run_dir) == outcome_of(undisturbed(fields))


def test_cancelled_in_its_optimizer_step_the_step_is_done_and_saved(trial: Any) -> None:
    fields = SIX | {"algorithm.remove_constant_groups": False}
    assert stopped_at(trial, fields, "optim_step", 3).reports == ["saved at step 3"]


def test_cancelled_while_the_update_is_measured_the_step_is_done_and_saved(trial: Any, undisturbed: Any) -> None:
    fields = SIX | EXACT["synchronous"]
    stopped = stopped_at(trial, fields, "forward", 3)
    assert len(stopped.reports) == 1
    assert stopped.reports[0].startswith("saved at step")
    assert outcome_of(gone_on(trial, fields).run_dir) == outcome_of(undisturbed(fields))


@pytest.mark.parametrize("way", EXACT)
def test_cancelled_while_a_save_is_written(
    way: str, trial: Any, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, write, asking = SIX | EXACT[way], checkpoints.write_checkpoint, []

    def slow(folder: Path, *args: Any) -> str:
        if folder.name == "step-00000002":
            loop, task = asking
            loop.call_soon_threadsafe(task.cancel)
            time.sleep(0.02)
        return write(folder, *args)

    async def run() -> None:
        task = asyncio.create_task(trial(fields).train())
        asking.extend([asyncio.get_running_loop(), task])
        await asyncio.wait([task])
        assert task.cancelled()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_checkpoint", slow)
        asyncio.run(run())
    assert outcome_of(gone_on(trial, fields).run_dir) == outcome_of(undisturbed(fields))


async def stopped_after(trial: Any, fields: dict[str, Any], delay: float) -> Any:
    made = trial(fields)
    task = asyncio.create_task(made.train())
    asyncio.get_running_loop().call_later(delay, task.cancel)
    await asyncio.wait([task])
    assert task.cancelled() or task.exception() is None
    return made


@pytest.mark.parametrize("way", EXACT)
def test_cancelled_at_random_moments(way: str, trial: Any, undisturbed: Any) -> None:
    fields, draw = SIX | EXACT[way], random.Random(way)
    for _ in range(3):
        asyncio.run(stopped_after(trial, fields, draw.random() * 0.3))
    assert outcome_of(gone_on(trial, fields).run_dir) == outcome_of(undisturbed(fields))


@pytest.mark.parametrize("way", AHEAD)
@pytest.mark.parametrize("step", [2, 4])
def test_off_policy_a_checkpoint_between_two_steps_is_gone_on_from_exactly(
    way: str, step: int, trial: Any, undisturbed: Any
) -> None:
    fields = SIX | AHEAD[way]
    run_dir = Path(shutil.copytree(undisturbed(fields), trial().run_dir))
    path = run_dir / "checkpoints" / checkpoints.checkpoint_name(step)
    kept = files.read_json(path / ROLLOUTS_FILE)
    assert kept["played"], "what was played ahead is kept"
    again = gone_on(trial, fields | {"checkpoint.resume_from_checkpoint": str(path)})
    assert outcome_of(run_dir) == outcome_of(undisturbed(fields))
    assert not {*again.problems.played} & {int(index) for index in kept["played"]}


@pytest.mark.parametrize("way", AHEAD)
@pytest.mark.parametrize(("event", "call"), [("sample", 77), ("forward_backward", 4), ("optim_step", 3)])
def test_off_policy_no_problem_is_lost_or_repeated(way: str, event: str, call: int, trial: Any) -> None:
    fields = SIX | AHEAD[way]
    stopped = stopped_at(trial, fields, event, call)
    folder = checkpoints.CheckpointFolder(stopped.run_dir)
    kept = kept_rollouts(stopped.run_dir) if folder.steps() else {"next_problem": 0, "played": {}}
    again = gone_on(trial, fields)
    assert_none_lost_or_repeated(stopped, again)
    played = again.problems.played
    assert len(played) == len({*played})
    assert not {*played} & {int(index) for index in kept["played"]}, "what was played is not played again"
    assert min(played, default=kept["next_problem"]) >= kept["next_problem"]
    ahead = fields.get("schedule.max_steps_off_policy", 1)
    assert all(row["sample/staleness"] <= ahead for row in rows_of(again.run_dir))


@pytest.mark.parametrize("way", AHEAD)
def test_off_policy_cancelled_at_random_moments(way: str, trial: Any) -> None:
    fields, draw = SIX | AHEAD[way], random.Random(way)
    starts = [asyncio.run(stopped_after(trial, fields, draw.random() * 0.3)) for _ in range(3)]
    assert_none_lost_or_repeated(*starts, gone_on(trial, fields))


def test_answers_come_back_from_a_checkpoint_to_the_bit(trial: Any) -> None:
    """What was played ahead of the stop is trained on as it was played."""
    fields = SIX | AHEAD["one ahead"]
    whole = trial(fields, "whole")
    whole.run()
    path = whole.run_dir / "checkpoints" / "step-00000004"
    again = gone_on(trial, fields | {"checkpoint.resume_from_checkpoint": str(path)})
    (before,), (after,) = ([groups for step, groups in made.shown if step == 5] for made in (whole, again))
    assert [one.group for one in before] == [one.group for one in after]


@pytest.mark.parametrize("way", ["synchronous", "substeps", "streamed"])
def test_an_engine_that_fails_stops_the_run_at_the_last_good_state(way: str, trial: Any, undisturbed: Any) -> None:
    fields, calls = SIX | EXACT[way], 0

    def tell(name: str) -> None:
        nonlocal calls
        calls += name == "forward_backward"
        if name == "forward_backward" and calls == 5:
            raise TrainingError("out of memory")

    failing = trial(fields, wrap=lambda client: toy.Told(client, tell))
    with pytest.raises(TrainingError, match="out of memory"):
        failing.run()
    assert checkpoints.CheckpointFolder(failing.run_dir).steps()
    assert outcome_of(gone_on(trial, fields).run_dir) == outcome_of(undisturbed(fields))


def test_a_finished_run_started_again_plays_nothing(trial: Any, undisturbed: Any) -> None:
    fields = SIX | AHEAD["one ahead"]
    Path(shutil.copytree(undisturbed(fields), trial().run_dir))
    again = gone_on(trial, fields)
    assert again.problems.played == []
    assert again.shown == []
    assert outcome_of(again.run_dir) == outcome_of(undisturbed(fields))


def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(trial: Any) -> None:
    """The shorter one played nothing beyond its end."""
    fields = SIX | {"train.lr_scheduler_type": "constant"} | AHEAD["two ahead"]
    first = gone_on(trial, fields | {"train.max_steps": 4})
    assert [*kept_rollouts(first.run_dir)["played"]] == []
    assert first.problems.played == [*range(16)]
    second = gone_on(trial, fields)
    assert second.problems.played == [*range(16, 24)]
    assert_none_lost_or_repeated(first, second)


KILLED = """
import sys
from pathlib import Path
from tests.rl import toy
toy.Trial(Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])).run()
"""


def test_killed_it_goes_on_from_the_newest_checkpoint(trial: Any, toy_model: Path, undisturbed: Any) -> None:
    """A real process and SIGKILL, off policy; each checkpoint of it is made between two steps."""
    fields, run_dir = SIX | AHEAD["one ahead"] | {"checkpoint.save_steps": 1}, trial().run_dir
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(toy_model), str(run_dir), repr(fields)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (run_dir / "checkpoints" / "step-00000001").is_dir():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    again = gone_on(trial, fields)
    assert again.reports[0].startswith("goes on from step")
    assert outcome_of(run_dir) == outcome_of(undisturbed(fields))
