"""The run's own record: one object a step, the same bytes in every run, no step twice and none missing."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crucible_train.metrics_file import METRICS_FILE, TIMINGS_FILE, MetricsFile, read_metrics


def metrics(step: int) -> dict[str, float]:
    return {
        "train/loss": 1 / (step + 1),
        "time/step_s": 0.5,
        "optim/learning_rate": 1e-4,
        "perf/tokens_per_second": 9.0,
    }


def steps_in(folder, file: str = METRICS_FILE) -> list[int]:
    return [record["step"] for record in read_metrics(folder, file)]


def test_parts_of_a_step_are_one_object_and_what_no_two_runs_share_stands_apart(tmp_path):
    file = MetricsFile(tmp_path)
    file.log_metrics(metrics(1), 1)
    file.log_metrics({"eval/nll": 2, "progress/num_tokens": 12}, 1)
    file.finish("done")
    assert [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()] == [
        {"step": 1, "train/loss": 0.5, "optim/learning_rate": 1e-4, "eval/nll": 2, "progress/num_tokens": 12}
    ]
    assert read_metrics(tmp_path, TIMINGS_FILE) == [{"step": 1, "time/step_s": 0.5, "perf/tokens_per_second": 9.0}]


def test_a_step_stands_first_and_the_names_in_an_order_that_does_not_depend_on_who_logged_first(tmp_path):
    for folder, order in (("a", 1), ("b", -1)):
        file = MetricsFile(tmp_path / folder)
        file.log_metrics(dict(list(metrics(0).items())[::order]), 0)
        file.flush()
    first, second = ((tmp_path / folder / METRICS_FILE).read_bytes() for folder in "ab")
    assert first == second
    assert first.startswith(b'{"step": 0, ')


def test_runs_that_differ_in_time_only_have_the_same_metrics_file(tmp_path):
    for folder, seconds in (("a", 1.0), ("b", 2.0)):
        file = MetricsFile(tmp_path / folder)
        for step in range(5):
            file.log_metrics(metrics(step) | {"time/step_s": seconds}, step)
        file.finish("done")
    assert (tmp_path / "a" / METRICS_FILE).read_bytes() == (tmp_path / "b" / METRICS_FILE).read_bytes()
    assert (tmp_path / "a" / TIMINGS_FILE).read_bytes() != (tmp_path / "b" / TIMINGS_FILE).read_bytes()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"loss": 1.0}, "metric 'loss': its area is none of"),
        ({"training/loss": 1.0}, "metric 'training/loss': its area is none of"),
        ({"train/loss": math.nan}, "metric 'train/loss' is nan at step 3"),
        ({"train/loss": -math.inf}, "metric 'train/loss' is -inf at step 3"),
    ],
)
def test_what_no_reader_could_use_is_refused_and_nothing_of_it_is_written(bad, said, tmp_path):
    file = MetricsFile(tmp_path)
    file.log_metrics(metrics(2), 2)
    with pytest.raises(ValueError, match=said):
        file.log_metrics({"train/entropy": 1.0} | bad, 3)
    file.finish("failed")
    assert steps_in(tmp_path) == [2]


def test_a_step_in_the_past_is_refused(tmp_path):
    file = MetricsFile(tmp_path)
    file.log_metrics(metrics(2), 2)
    with pytest.raises(ValueError, match="step 1 is logged after step 2"):
        file.log_metrics(metrics(1), 1)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    saved=st.integers(0, 6),
    killed=st.integers(0, 6),
    torn=st.integers(0, 40),
    garbage=st.sampled_from([b"", b'{"step"', b"\xff\n"]),
)
def test_a_run_killed_anywhere_and_gone_on_from_its_checkpoint_has_every_step_once(
    tmp_path_factory, saved, killed, torn, garbage
):
    folder, undisturbed = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("undisturbed")
    whole = MetricsFile(undisturbed)
    file, contents = MetricsFile(folder), b""
    for step in range(10):
        whole.log_metrics(metrics(step), step)
        if step <= saved + killed:
            file.log_metrics(metrics(step), step)
        if step == saved:
            contents = file.contents()
    whole.finish("done")
    for name in (METRICS_FILE, TIMINGS_FILE):
        if (folder / name).exists():
            data = (folder / name).read_bytes()
            keep = len(data) - torn if name == METRICS_FILE else len(data)
            (folder / name).write_bytes(data[: max(0, keep)] + garbage)
    again = MetricsFile(folder)
    again.rewind(saved, contents)
    for step in range(saved + 1, 10):
        again.log_metrics(metrics(step), step)
    again.finish("done")
    assert (folder / METRICS_FILE).read_bytes() == (undisturbed / METRICS_FILE).read_bytes()
    assert steps_in(folder) == steps_in(folder, TIMINGS_FILE) == list(range(10))


def test_the_copy_for_a_checkpoint_holds_the_step_that_was_just_logged(tmp_path):
    file = MetricsFile(tmp_path)
    assert file.contents() == b""
    file.log_metrics(metrics(1), 1)
    assert file.contents() == (tmp_path / METRICS_FILE).read_bytes()
    assert json.loads(file.contents())["step"] == 1


def test_a_torn_last_line_is_left_out_when_read(tmp_path):
    file = MetricsFile(tmp_path)
    for step in range(3):
        file.log_metrics(metrics(step), step)
    file.finish("done")
    data = (tmp_path / METRICS_FILE).read_bytes()
    last = data.splitlines(keepends=True)[-1]
    for end in range(1, len(last) - 1):
        (tmp_path / METRICS_FILE).write_bytes(data[: len(data) - end - 1])
        assert steps_in(tmp_path) == [0, 1]


def test_a_run_directory_without_records_has_none(tmp_path):
    assert read_metrics(tmp_path / "nowhere") == []
