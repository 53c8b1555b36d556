"""Two evaluations of the same examples, and what is said of their difference."""

import pytest

from crucible_train.evaluation.comparison import Compared, compare, compare_ended
from crucible_train.evaluation.statistics import Interval


def nlls(values, num_tokens=10):
    return [{"kind": "nll", "row": row, "nll": value, "num_tokens": num_tokens} for row, value in enumerate(values)]


def answers(hits, name="final_answer"):
    return [{"kind": "answer", "row": row, "scores": {name: float(hit)}} for row, hit in enumerate(hits)]


def test_figures_and_their_differences():
    before = nlls([20.0 + row for row in range(20)]) + answers([False] * 12)
    after = nlls([15.0 + 1.1 * row for row in range(20)]) + answers([True] * 10 + [False] * 2)
    nll, exact = compare(before, after, seed=0)
    assert (nll.name, nll.num, nll.lower_is_better) == ("nll", 20, True)
    assert (nll.before.value, nll.after.value) == pytest.approx((2.95, 2.545))
    assert nll.difference.value == pytest.approx(-0.405)
    assert nll.difference.low < -0.405 < nll.difference.high < 0
    assert nll.verdict == "better"
    assert (exact.name, exact.num, exact.lower_is_better) == ("final_answer", 12, False)
    assert (exact.before.value, exact.after.value, exact.difference.value) == pytest.approx((0, 10 / 12, 10 / 12))
    assert exact.verdict == "better"


def test_the_other_way_round_is_worse_and_against_itself_nothing_is_clear():
    before, after = nlls([20.0 + row % 3 for row in range(20)]), nlls([15.0 + row % 4 for row in range(20)])
    assert compare(after, before, seed=0)[0].verdict == "worse"
    same = compare(before, before, seed=0)[0]
    assert same.difference == Interval(0, 0, 0)
    assert same.verdict == "no clear change"


def test_tokens_not_examples_are_averaged():
    before = [*nlls([10.0], 10), {"kind": "nll", "row": 1, "nll": 90.0, "num_tokens": 30}]
    assert compare(before, before, seed=0)[0].before.value == pytest.approx(100 / 40)


def test_a_change_in_five_examples_is_never_called_clear_and_in_six_it_may_be():
    for num, verdict in ((2, "no clear change"), (5, "no clear change"), (6, "better")):
        nll, exact = compare(nlls([9.0] * num) + answers([0] * num), nlls([1.0] * num) + answers([1] * num), seed=0)
        assert (nll.verdict, exact.verdict) == (verdict, verdict)


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "verdict"),
    [
        (0.1, 0.3, False, "better"),
        (0.1, 0.3, True, "worse"),
        (-0.3, -0.1, False, "worse"),
        (-0.3, -0.1, True, "better"),
        (-0.1, 0.3, False, "no clear change"),
        (0.0, 0.3, False, "no clear change"),
    ],
)
def test_the_verdict_follows_the_interval_and_the_direction_of_gain(low, high, lower_is_better, verdict):
    middle = Interval((low + high) / 2, low, high)
    assert Compared("x", 50, middle, middle, middle, lower_is_better).verdict == verdict


@pytest.mark.parametrize("make", [nlls, answers])
def test_evaluations_of_other_examples_are_not_compared(make):
    with pytest.raises(ValueError, match="not over the same examples"):
        compare(make([1, 1]), make([1]), seed=0)
    with pytest.raises(ValueError, match="not over the same examples"):
        compare(make([1, 1]), make([1, 1])[::-1], seed=0)


def test_what_was_not_measured_is_not_compared():
    assert compare([], [], seed=0) == []
    assert [found.name for found in compare(answers([1]), answers([1]), seed=0)] == ["final_answer"]


def test_one_example_has_no_interval():
    for num, has_interval, verdict in ((1, False, "one example, no interval"), (2, True, "no clear change")):
        found = compare(nlls([9.0] * num) + answers([0] * num), nlls([1.0] * num) + answers([1] * num), seed=0)
        assert [row.has_interval for row in found] == [has_interval] * 2
        assert [row.verdict for row in found] == [verdict] * 2
        assert not any(row.is_clear for row in found)


def test_several_examples_of_one_conversation_are_one():
    records = [{"kind": "nll", "row": 0, "nll": value, "num_tokens": 10} for value in (3.0, 5.0)]
    assert not compare(records, records, seed=0)[0].has_interval


def test_answers_that_were_ended_are_compared_like_a_score():
    before, after = ([{**record, "ended": ended} for record in answers([0] * 8)] for ended in (False, True))
    (ended,) = compare_ended(before, after)
    assert (ended.name, ended.num, ended.before.value, ended.after.value) == ("ended", 8, 0.0, 1.0)
    assert ended.verdict == "better"
    assert compare_ended(nlls([1.0]), nlls([1.0])) == []
