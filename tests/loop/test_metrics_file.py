"""The run's own record of its numbers: one object a step, none twice, none missing, rewound with the run."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crucible_train.metrics_file import MetricsFile, read_metrics


def steps_of(run_dir: Path, file: str = "metrics.jsonl") -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / file).read_text().splitlines()]


def logged(run_dir: Path, num_steps: int) -> MetricsFile:
    metrics = MetricsFile(run_dir)
    for step in range(num_steps):
        metrics.log_metrics({"train/loss": step / 3, "time/step_s": 0.5}, step)
    return metrics


def test_what_repeats_and_what_does_not_are_apart(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.log_metrics({"train/loss": 1.5, "time/step_s": 0.25, "perf/tokens_per_second": 7}, 1)
    metrics.finish("done")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 1.5}\n'
    assert (tmp_path / "timings.jsonl").read_text() == '{"step": 1, "perf/tokens_per_second": 7, "time/step_s": 0.25}\n'


def test_parts_of_a_step_become_one_object_whatever_their_order(tmp_path: Path) -> None:
    for name, parts in (("a", ("train/loss", "eval/nll")), ("b", ("eval/nll", "train/loss"))):
        metrics = MetricsFile(tmp_path / name)
        for part in parts:
            metrics.log_metrics({part: 1.0}, 3)
        metrics.finish("failed")
        metrics.finish("failed")
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == '{"step": 3, "eval/nll": 1.0, "train/loss": 1.0}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metric 'train/loss' is .* at step 1"):
        MetricsFile(tmp_path).log_metrics({"train/loss": value}, 1)


def test_an_unknown_area_and_a_past_step_are_refused(tmp_path: Path) -> None:
    metrics = logged(tmp_path, 3)
    with pytest.raises(ValueError, match="metric 'other/x'"):
        metrics.log_metrics({"other/x": 1.0}, 3)
    with pytest.raises(ValueError, match="step 1 is logged after step 2"):
        metrics.log_metrics({"train/loss": 1.0}, 1)
    metrics.flush()
    assert steps_of(tmp_path) == [0, 1, 2]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(num_later=st.integers(0, 12), saved_at=st.integers(0, 12), num_torn=st.integers(0, 30))
def test_rewinding_and_going_on_leaves_every_step_once(
    num_later: int, saved_at: int, num_torn: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Saved after some steps, killed some steps later in the middle of a line."""
    run_dir = tmp_path_factory.mktemp("run")
    contents = logged(run_dir, saved_at + 1).contents()
    killed = MetricsFile(run_dir)
    for step in range(saved_at + 1, saved_at + 1 + num_later):
        killed.log_metrics({"train/loss": 9.0, "time/step_s": 9.0}, step)
    for name in ("metrics.jsonl", "timings.jsonl"):
        path = run_dir / name
        with path.open("ab") as file:
            file.write(b'{"step": 99, "train/loss": 1.0}'[:num_torn])
    resumed = MetricsFile(run_dir)
    resumed.rewind(saved_at, contents)
    for step in range(saved_at + 1, 15):
        resumed.log_metrics({"train/loss": step / 3, "time/step_s": 0.5}, step)
    resumed.finish("done")
    logged(run_dir / "whole", 15).finish("done")
    for name in ("metrics.jsonl", "timings.jsonl"):
        assert (run_dir / name).read_bytes() == (run_dir / "whole" / name).read_bytes()


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    logged(tmp_path, 3).flush()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "train/lo\xc3')
    assert [record["step"] for record in read_metrics(tmp_path)] == [0, 1, 2]
    assert read_metrics(tmp_path / "absent") == []


def test_failing_to_write_the_timings_does_not_write_the_metrics_twice(tmp_path: Path) -> None:
    metrics = logged(tmp_path, 2)
    (tmp_path / "timings.jsonl").unlink()
    (tmp_path / "timings.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        metrics.flush()
    (tmp_path / "timings.jsonl").rmdir()
    metrics.flush()
    assert steps_of(tmp_path) == [0, 1]
    assert steps_of(tmp_path, "timings.jsonl") == [1]
