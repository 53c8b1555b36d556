"""A run killed with SIGKILL at any instant and started again ends with the same bits."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

METHODS = pytest.mark.parametrize("use_peft", [True, False], ids=["lora", "full"])
SHORT = {"train.max_steps": 4, "eval.eval_steps": 2, "checkpoint.save_steps": 2, "checkpoint.save_total_limit": 1}
LONG = {"train.max_steps": 60, "eval.eval_steps": 7, "checkpoint.save_steps": 5}


@pytest.fixture(scope="session")
def undisturbed(world: Any, outcome: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What a run that nothing happens to ends with."""
    known: dict[str, Any] = {}

    def find(fields: dict[str, Any]) -> Any:
        key = json.dumps(fields, sort_keys=True)
        if key not in known:
            run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
            assert world.train(run_dir, fields=fields).answer["reports"] == []
            known[key] = outcome(run_dir)
        return known[key]

    return find


@pytest.fixture(scope="session")
def halfway(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its third step of four, with one checkpoint, after two."""
    run_dir = tmp_path_factory.mktemp("halfway") / "run"
    assert world.train(run_dir, fields=SHORT, kill_after=[3, "step-00000002"]).was_killed
    return run_dir


@pytest.fixture
def halfway_run(halfway: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(halfway, tmp_path / "run"))


@METHODS
def test_the_same_seed_gives_the_same_bits_and_another_gives_others(
    use_peft: bool, world: Any, outcome: Any, undisturbed: Any, tmp_path: Path
) -> None:
    fields = SHORT | {"peft.use_peft": use_peft}
    for name, seed in (("same", 1), ("other", 2)):
        world.train(tmp_path / name, fields=fields | {"seed": seed})
    assert outcome(tmp_path / "same") == undisturbed(fields)
    assert outcome(tmp_path / "other")["sha256"] != undisturbed(fields)["sha256"]
    assert outcome(tmp_path / "other")["metrics"] != undisturbed(fields)["metrics"]


@METHODS
def test_killed_at_five_random_moments(
    use_peft: bool, world: Any, outcome: Any, undisturbed: Any, tmp_path: Path
) -> None:
    fields, run_dir = LONG | {"peft.use_peft": use_peft}, tmp_path / "run"
    expected = undisturbed(fields)
    draw = random.Random(20 + use_peft)
    metrics = run_dir / "metrics.jsonl"
    for size in sorted(draw.sample(range(len(expected["metrics"]) * 3 // 4), 5)):
        pid, answer = world.zygote.start(do="train", world=world.path, run_dir=run_dir, fields=fields)
        while not metrics.is_file() or metrics.stat().st_size < size:
            time.sleep(0.0002)
        time.sleep(draw.random() * 0.005)
        os.kill(pid, signal.SIGKILL)
        assert world.zygote.wait(answer).was_killed
    assert "goes on from step" in world.train(run_dir, fields=fields).reports
    assert outcome(run_dir) == expected
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    timed = [json.loads(line)["step"] for line in (run_dir / "timings.jsonl").read_text().splitlines()]
    assert steps == [*range(61)]
    assert timed == [*range(1, 61)]


def test_killed_before_every_call_that_changes_the_disk(
    world: Any, outcome: Any, undisturbed: Any, halfway: Path, tmp_path: Path
) -> None:
    """The run goes on from step 2, takes two steps, saves and deletes the older checkpoint: every such call of it."""
    expected = undisturbed(SHORT)
    num_calls = world.train(Path(shutil.copytree(halfway, tmp_path / "whole")), fields=SHORT).answer["num_calls"]
    assert num_calls > 40
    for at in range(1, num_calls + 1):
        run_dir = Path(shutil.copytree(halfway, tmp_path / str(at)))
        world.train(run_dir, fields=SHORT, at=at)
        has_new = (run_dir / "checkpoints" / "step-00000004").is_dir()
        ended = world.train(run_dir, fields=SHORT)
        assert f"goes on from step {4 if has_new else 2} " in ended.reports, at
        assert "passed over" not in ended.reports, at
        assert outcome(run_dir) == expected, at


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_while_it_recovers(
    seed: int, world: Any, outcome: Any, undisturbed: Any, halfway_run: Path
) -> None:
    draw = random.Random(seed)
    for _ in range(6):
        world.train(halfway_run, fields=SHORT, at=draw.randrange(1, 30))
    world.train(halfway_run, fields=SHORT)
    assert outcome(halfway_run) == undisturbed(SHORT)


@pytest.mark.parametrize(("at", "error"), [*zip(range(3, 46, 5), itertools.cycle(["ENOSPC", "EIO"]))])
def test_a_disk_that_fails_stops_the_run_and_leaves_a_good_state(
    at: int, error: str, world: Any, outcome: Any, undisturbed: Any, halfway_run: Path
) -> None:
    failed = world.train(halfway_run, fields=SHORT, at=at, error=error, lasts=True)
    assert "RunError" in failed.answer["kinds"]
    assert "could not be written" in failed.answer["error"]
    assert os.strerror({"ENOSPC": 28, "EIO": 5}[error]) in failed.answer["error"]
    assert "goes on from step" in world.train(halfway_run, fields=SHORT).reports
    assert outcome(halfway_run) == undisturbed(SHORT)


def test_a_file_that_does_not_fit_stops_the_run_and_leaves_a_good_state(
    world: Any, outcome: Any, undisturbed: Any, halfway_run: Path
) -> None:
    size = (halfway_run / "checkpoints" / "step-00000002" / "optimizer.safetensors").stat().st_size
    failed = world.train(halfway_run, fields=SHORT, max_file_bytes=size - 100)
    assert "CheckpointError" in failed.answer["kinds"]
    assert "step-00000004: it could not be written" in failed.answer["error"]
    assert "the state at step 4 is not saved" in failed.reports
    assert not [*halfway_run.rglob(".tmp-*")]
    assert "goes on from step 2 " in world.train(halfway_run, fields=SHORT).reports
    assert outcome(halfway_run) == undisturbed(SHORT)


def test_one_failed_save_is_tried_again_before_the_run_stops(world: Any, halfway_run: Path) -> None:
    whole = Path(shutil.copytree(halfway_run, halfway_run.with_name("whole")))
    num_calls = world.train(whole, fields=SHORT).answer["num_calls"]
    failed = world.train(halfway_run, fields=SHORT, at=num_calls - 20, error="EIO")
    assert "CheckpointError" in failed.answer["kinds"]
    assert "saved at step 4" in failed.reports
    assert (halfway_run / "checkpoints" / "step-00000004").is_dir()


@pytest.mark.parametrize("size", range(1000, 1080, 7))
def test_a_full_disk_tears_no_line_of_the_metrics_and_doubles_none(size: int, zygote: Any, tmp_path: Path) -> None:
    failed = zygote.run(do="log", run_dir=tmp_path, max_file_bytes=size)
    assert "OSError" in failed.answer["kinds"]
    for name in ("metrics.jsonl", "timings.jsonl"):
        records = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [record["step"] for record in records] == [*range(len(records))]
        assert len(records) > 15
