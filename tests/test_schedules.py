"""Learning rates, worked out by hand."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_train.errors import ConfigError
from crucible_train.schedules import Schedule, count_steps

HALF = math.sqrt(2) / 2

GOLDEN = {
    "constant": (Schedule("constant", 8.0, 4), [8, 8, 8, 8, 8, 8]),
    "constant, warm-up": (Schedule("constant", 8.0, 5, warmup_steps=4), [2, 4, 6, 8, 8, 8]),
    "linear": (Schedule("linear", 8.0, 4), [8, 6, 4, 2, 0, 0]),
    "linear, warm-up": (Schedule("linear", 8.0, 6, warmup_steps=2), [4, 8, 8, 6, 4, 2, 0, 0]),
    "linear, floor": (Schedule("linear", 8.0, 4, min_ratio=0.5), [8, 7, 6, 5, 4, 4]),
    # (1 + cos(pi p)) / 2 at p = 0, 1/4, 1/2, 3/4, 1
    "cosine": (Schedule("cosine", 8.0, 4), [8, 4 + 4 * HALF, 4, 4 - 4 * HALF, 0, 0]),
    "cosine, warm-up, floor": (
        Schedule("cosine", 8.0, 6, warmup_steps=2, min_ratio=0.25),
        [4, 8, 8, 2 + 6 * (1 + HALF) / 2, 5, 2 + 6 * (1 - HALF) / 2, 2, 2],
    ),
    "wsd": (Schedule("wsd", 8.0, 8, warmup_steps=2, decay_steps=4), [4, 8, 8, 8, 8, 6, 4, 2, 0, 0]),
    "wsd, floor": (Schedule("wsd", 8.0, 4, decay_steps=2, min_ratio=0.5), [8, 8, 8, 6, 4, 4]),
    "wsd, nothing falls": (Schedule("wsd", 8.0, 3), [8, 8, 8, 0]),
    "all of it is warm-up": (Schedule("linear", 8.0, 4, warmup_steps=4), [2, 4, 6, 8, 0]),
    "one step": (Schedule("cosine", 8.0, 1), [8, 0]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_rates_are_those_worked_out_by_hand_also_past_the_end(name):
    schedule, rates = GOLDEN[name]
    assert [schedule.rate(step) for step in range(len(rates))] == pytest.approx(rates, abs=1e-12)


SCHEDULES = st.builds(
    lambda kind, num, warm, decay, low: Schedule(
        kind, 1e-3, num, min(warm, num), min(decay, num - min(warm, num)), low
    ),
    st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    st.integers(1, 200),
    st.integers(0, 200),
    st.integers(0, 200),
    st.floats(0, 1),
)


@given(schedule=SCHEDULES)
def test_the_first_rate_is_above_zero_and_none_leaves_its_bounds(schedule):
    rates = [schedule.rate(step) for step in range(schedule.num_steps + 3)]
    assert all(rate > 0 for rate in rates[: schedule.num_steps])
    assert max(rates) <= schedule.peak * (1 + 1e-12)
    after = rates[schedule.warmup_steps :]
    assert all(a >= b - 1e-15 for a, b in pairwise(after))
    assert min(after) >= schedule.peak * schedule.min_ratio * (1 - 1e-12)
    assert rates[-1] == rates[-2] == rates[-3]


@given(schedule=SCHEDULES)
def test_the_warm_up_rises_to_the_peak_in_equal_parts(schedule):
    for step in range(schedule.warmup_steps):
        assert schedule.rate(step) == pytest.approx(schedule.peak * (step + 1) / schedule.warmup_steps)


@pytest.mark.parametrize(
    "arguments",
    [{"num_steps": 0}, {"num_steps": 3, "warmup_steps": -1}, {"num_steps": 3, "decay_steps": -1}],
)
def test_parts_that_cannot_be_are_refused(arguments):
    with pytest.raises(ConfigError, match="at least one step and no negative part"):
        Schedule("linear", 1.0, **arguments)


def test_a_wsd_whose_parts_do_not_fit_says_so():
    with pytest.raises(ConfigError, match=r"train\.decay_steps: 3 warm-up and 3 decay steps do not fit into 5 steps"):
        Schedule("wsd", 1.0, 5, 3, 3)


@pytest.mark.parametrize(
    ("value", "num_steps", "steps"), [(0, 100, 0), (5, 100, 5), (1, 100, 1), (0.05, 100, 5), (0.05, 16, 1), (0.9, 1, 1)]
)
def test_steps_are_a_number_or_a_share(value, num_steps, steps):
    assert count_steps(value, num_steps) == steps
