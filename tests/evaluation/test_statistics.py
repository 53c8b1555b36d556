"""Intervals, beside published values, other formulas for the same thing, and their coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_train.evaluation import statistics
from crucible_train.evaluation.statistics import (
    Interval,
    paired_rate_interval,
    paired_ratio_interval,
    rate_interval,
    ratio_interval,
)

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),  # R: prop.test(8, 10, correct=FALSE)
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe, Statistics in Medicine 17 (1998), table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_its_published_values(hits, trials, low, high):
    found = rate_interval(hits, trials)
    assert found.value == hits / trials
    assert (found.low, found.high) == pytest.approx((low, high), abs=5.1e-5)


@given(trials=st.integers(1, 500), data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilsons_bounds_are_the_shares_that_lie_z_errors_away(trials, data, confidence):
    hits = data.draw(st.integers(0, trials))
    found = rate_interval(hits, trials, confidence)
    z = {0.8: 1.2815515655446004, 0.95: Z, 0.99: 2.5758293035489004}[confidence]
    assert (found.low == 0) == (hits == 0)
    assert (found.high == 1) == (hits == trials)
    for bound in (found.low, found.high):
        if 0 < bound < 1:
            assert abs(bound - hits / trials) == pytest.approx(z * math.sqrt(bound * (1 - bound) / trials), rel=1e-6)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_no_trial_says_nothing():
    found = rate_interval(0, 0)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0, 1)
    assert not paired_rate_interval([], []).excludes(0)


def cells(both: int, lost: int, gained: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * lost + [(False, True)] * gained + [(False, False)] * neither
    return [b for b, _ in pairs], [a for _, a in pairs]


def test_the_paired_difference_of_shares_worked_out_by_hand():
    # 20 gained, 5 lost of 100: with half an observation more in each cell 20.5 and 5.5 of 102, so
    # (20.5 - 5.5) / 102 = 0.1470588 and sqrt(26 - 15^2 / 102) / 102 = 0.0478229
    found = paired_rate_interval(*cells(40, 5, 20, 35))
    assert found.value == pytest.approx(0.15)
    assert found.low == pytest.approx(0.1470588 - Z * 0.0478229, abs=2e-6)
    assert found.high == pytest.approx(0.1470588 + Z * 0.0478229, abs=2e-6)
    assert found.excludes(0)


@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any))
def test_swapping_before_and_after_turns_the_difference_round(counts):
    before, after = cells(*counts)
    there, back = paired_rate_interval(before, after), paired_rate_interval(after, before)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert -1 <= there.low <= there.high <= 1


def test_pairs_that_agree_make_the_interval_of_a_difference_narrower():
    correlated = paired_rate_interval(*cells(45, 1, 9, 45))
    independent = paired_rate_interval(*cells(25, 21, 29, 25))
    assert correlated.value == pytest.approx(independent.value)
    assert correlated.high - correlated.low < (independent.high - independent.low) / 2


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.1, 0.1), (0.05, 0.3), (0.01, 0.02)])
def test_the_paired_interval_covers_the_truth_about_as_often_as_it_says(p_lost, p_gained):
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        lost, gained, same = draw.multinomial(50, [p_lost, p_gained, 1 - p_lost - p_gained])
        found = paired_rate_interval(*cells(int(same), int(lost), int(gained), 0))
        covered += not found.excludes(p_gained - p_lost)
    assert covered / 1000 > 0.935


def test_the_ratio_is_of_sums_not_a_mean_of_ratios():
    found = ratio_interval(np.array([10.0, 1.0]), np.array([10.0, 4.0]), seed=0)
    assert found.value == pytest.approx(11 / 14)
    assert 0.25 <= found.low <= found.value <= found.high <= 1


def test_the_bootstrap_agrees_with_the_delta_method_for_many_examples():
    draw = np.random.default_rng(1)
    counts = draw.integers(20, 200, 400).astype(float)
    totals = counts * draw.normal(1.5, 0.4, 400)
    found = ratio_interval(totals, counts, seed=0)
    residuals = totals - totals.sum() / counts.sum() * counts
    error = math.sqrt((residuals**2).sum()) / counts.sum()
    assert found.low == pytest.approx(found.value - Z * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + Z * error, abs=0.15 * error)


def test_a_paired_difference_is_far_tighter_than_the_two_intervals():
    draw = np.random.default_rng(2)
    counts = np.full(60, 100.0)
    before = 100 * draw.normal(1.5, 0.5, 60)
    after = before - 100 * draw.normal(0.1, 0.05, 60)
    paired = paired_ratio_interval(before, after, counts, seed=0)
    alone = ratio_interval(after, counts, seed=0)
    assert paired.value == pytest.approx((after.sum() - before.sum()) / 6000)
    assert paired.high < 0
    assert (paired.high - paired.low) * 5 < alone.high - alone.low


def test_the_paired_difference_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "_NUM_RESAMPLES", 500)
    draw = np.random.default_rng(3)
    counts = draw.integers(20, 200, 50).astype(float)
    covered = 0
    for trial in range(200):
        before = counts * draw.normal(1.5, 0.4, 50)
        after = before - counts * draw.exponential(0.1, 50)
        covered += not paired_ratio_interval(before, after, counts, seed=trial).excludes(-0.1)
    assert 0.88 <= covered / 200 <= 0.99


def test_draws_are_the_seeds_and_the_same_however_they_are_cut(monkeypatch):
    totals, counts = np.random.default_rng(4).random((2, 37)) + 1
    found = ratio_interval(totals, counts, seed=5)
    assert ratio_interval(totals, counts, seed=5) == found
    assert ratio_interval(totals, counts, seed=6) != found
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 37 * 999)
    again = ratio_interval(totals, counts, seed=5)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), rel=1e-12)


def test_one_example_leaves_no_doubt_and_its_interval_says_nothing_beyond_it():
    assert ratio_interval(np.array([3.0]), np.array([2.0]), seed=0) == Interval(1.5, 1.5, 1.5)


def test_an_interval_excludes_what_lies_outside_it():
    interval = Interval(0.5, 0.0, 1.0)
    assert not interval.excludes(0.0)
    assert not interval.excludes(1.0)
    assert interval.excludes(-1e-9)
    assert interval.excludes(1.1)
