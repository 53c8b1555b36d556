"""What a loop remembers, and how often something is due."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_train.errors import CheckpointError
from crucible_train.loop.run import Cadence
from crucible_train.loop.state import Best, LoopState

VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20)


def after_all(values: list[float], greater_is_better: bool, threshold: float) -> Best:
    best = Best()
    for index, value in enumerate(values):
        best = best.after(value, index + 1, greater_is_better=greater_is_better, threshold=threshold)
    return best


@given(VALUES, st.booleans(), st.floats(0, 10))
def test_the_best_is_the_first_of_the_extreme_finite_values(
    values: list[float], greater_is_better: bool, threshold: float
) -> None:
    best = after_all(values, greater_is_better, threshold)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        assert best == Best(num_evals_since=len(values))
    else:
        extreme = max(finite) if greater_is_better else min(finite)
        assert best.value == extreme
        assert best.step == values.index(extreme) + 1


@given(VALUES, st.floats(0, 10))
def test_a_falling_metric_is_a_rising_one_upside_down(values: list[float], threshold: float) -> None:
    falling = after_all(values, False, threshold)
    rising = after_all([-value for value in values], True, threshold)
    assert (falling.step, falling.num_evals_since) == (rising.step, rising.num_evals_since)


@pytest.mark.parametrize(
    ("values", "threshold", "expected"),
    [
        ([3.0], 0.0, [0]),
        ([3.0, 3.0, 3.0], 0.0, [0, 1, 2]),
        ([3.0, 2.0, 2.5, 1.0], 0.0, [0, 0, 1, 0]),
        ([3.0, 2.5, 2.0, 1.5], 0.5, [0, 1, 0, 1]),
        ([3.0, 2.0, 1.0], 1.0, [0, 1, 0]),
        ([3.0, 2.0, 1.0], 2.0, [0, 1, 2]),
        ([math.nan, 3.0, math.nan], 0.0, [1, 0, 1]),
    ],
)
def test_evaluations_without_a_gain_that_counts(values: list[float], threshold: float, expected: list[int]) -> None:
    counts = [after_all(values[: index + 1], False, threshold).num_evals_since for index in range(len(values))]
    assert counts == expected


@given(
    st.builds(
        LoopState,
        step=st.integers(0),
        num_tokens=st.integers(0),
        best=st.builds(
            Best,
            value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
            step=st.integers(0),
            num_evals_since=st.integers(0),
        ),
        unlogged=st.none() | st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    )
)
def test_a_state_survives_json(state: LoopState) -> None:
    assert LoopState.from_json(json.loads(json.dumps(state.to_json()))) == state


@pytest.mark.parametrize("value", [None, [], "text", {}, {"best": None}, {"best": {}, "other": 1}, {"best": {"x": 1}}])
def test_what_is_no_state_is_an_error_of_the_checkpoint(value: Any) -> None:
    with pytest.raises(CheckpointError):
        LoopState.from_json(value)


@pytest.mark.parametrize(
    ("value", "num_steps", "due"),
    [
        (0, 5, [5]),
        (2, 5, [2, 4, 5]),
        (5, 5, [5]),
        (9, 5, [5]),
        (0.25, 16, [4, 8, 12, 16]),
        (0.25, 2, [1, 2]),
        (0.9, 10, [9, 10]),
        (0.001, 3, [1, 2, 3]),
    ],
)
def test_a_number_of_steps_or_a_share_of_them(value: float, num_steps: int, due: list[int]) -> None:
    cadence = Cadence.of(value, num_steps)
    assert [step for step in range(1, num_steps + 1) if cadence.is_due(step)] == due
