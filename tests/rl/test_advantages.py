"""Advantages against numbers worked out by hand, and what holds of them whatever the rewards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_train.rl.advantages import advantages, is_constant, overlong_penalty

WITHIN_GROUP = ["group_mean", "group_normalised", "rloo"]
ALL = [*WITHIN_GROUP, "batch_mean"]
REWARDS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=16)


def test_the_mean_of_the_group_is_the_baseline():
    """Rewards 1, 0, 0, 3 have mean 1; 2 and 4 have mean 3."""
    first, second = advantages([[1, 0, 0, 3], [2, 4]], "group_mean")
    assert first.tolist() == [0, -1, -1, 2]
    assert second.tolist() == [-1, 1]


def test_normalised_by_the_deviation_with_bessels_correction():
    """Rewards 1, 0, 0, 3: squares about the mean 0 + 1 + 1 + 4 = 6, over 4 - 1 is 2, so the deviation is sqrt(2)."""
    (found,) = advantages([[1, 0, 0, 3]], "group_normalised")
    assert found == pytest.approx(np.array([0, -1, -1, 2]) / (2**0.5 + 1e-4), rel=1e-12)


def test_rloo_leaves_each_out_of_its_own_baseline():
    """Rewards 1, 0, 0, 3: the others' means are 3/3, 4/3, 4/3 and 1/3."""
    (found,) = advantages([[1, 0, 0, 3]], "rloo")
    assert found == pytest.approx(np.array([0, -4 / 3, -4 / 3, 8 / 3]), rel=1e-12)


def test_the_mean_over_all_groups_is_the_baseline():
    """1, 0, 5 and 2 have mean 2, whichever groups they are in."""
    first, second = advantages([[1], [0, 5, 2]], "batch_mean")
    assert first.tolist() == [-1]
    assert second.tolist() == [-2, 3, 0]
    assert advantages([], "batch_mean") == []


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.3, 1e6 / 3])
@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_equal_rewards_give_exactly_0(estimator: str, reward: float, size: int):
    """The mean of ten times 0.1 is not 0.1 in floating point."""
    for found in advantages([[reward] * size] * 2, estimator):
        assert found.tolist() == [0.0] * size


@pytest.mark.parametrize("estimator", WITHIN_GROUP)
def test_a_group_of_one_has_advantage_0(estimator: str):
    assert advantages([[7.0], [1.0, 3.0]], estimator)[0].tolist() == [0.0]


@given(st.lists(REWARDS, min_size=1, max_size=4), st.sampled_from(ALL))
def test_advantages_sum_to_0(rewards_P_G: list[list[float]], estimator: str):
    found = advantages(rewards_P_G, estimator)
    sums = [np.concatenate(found)] if estimator == "batch_mean" else found
    for values in sums:
        assert abs(values.sum()) <= 1e-9 * (1 + np.abs(values).sum())


@given(st.lists(REWARDS, min_size=1, max_size=4), st.sampled_from(ALL), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(rewards_P_G: list[list[float]], estimator: str, draw):
    orders = [draw.sample(range(len(group)), len(group)) for group in rewards_P_G]
    shuffled = [[group[place] for place in order] for group, order in zip(rewards_P_G, orders, strict=True)]
    plain, permuted = advantages(rewards_P_G, estimator), advantages(shuffled, estimator)
    for before, after, order in zip(plain, permuted, orders, strict=True):
        assert after == pytest.approx(before[order], rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=16))
def test_rloo_is_the_group_mean_times_n_over_n_less_1(rewards_G: list[float]):
    (rloo,), (mean,) = advantages([rewards_G], "rloo"), advantages([rewards_G], "group_mean")
    size = len(rewards_G)
    assert rloo == pytest.approx(mean * size / (size - 1), rel=1e-12)
    others = [(sum(rewards_G) - reward) / (size - 1) for reward in rewards_G]
    assert rloo == pytest.approx(np.asarray(rewards_G) - others, rel=1e-9, abs=1e-9)


@given(REWARDS, st.floats(-1000, 1000, width=16))
def test_a_shift_of_all_rewards_changes_nothing(rewards_G: list[float], shift: float):
    shifted_G = [reward + shift for reward in rewards_G]
    for estimator in ("group_mean", "rloo"):
        (plain,), (shifted,) = advantages([rewards_G], estimator), advantages([shifted_G], estimator)
        assert shifted == pytest.approx(plain, rel=1e-6, abs=1e-6)


def test_is_constant():
    assert is_constant([])
    assert is_constant([0.3])
    assert is_constant([0.3, 0.3])
    assert not is_constant([0.3, 0.30000000000000004])


@pytest.mark.parametrize(
    ("num_tokens", "penalty"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (85, -0.25), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0), (200, -1.0)],
)
def test_overlong_answers_cost_what_equation_13_of_dapo_says(num_tokens: int, penalty: float):
    """L_max = 100, L_cache = 20: 0 up to 80, (80 - L) / 20 from there to 100, -1 beyond."""
    assert overlong_penalty(num_tokens, 100, 20) == pytest.approx(penalty, rel=1e-12)


def test_without_a_buffer_no_length_costs():
    assert overlong_penalty(1000, 100, 0) == 0.0
