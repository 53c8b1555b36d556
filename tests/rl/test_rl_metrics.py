"""The numbers of a step, worked out by hand on a few groups."""

import numpy as np
import pytest

from crucible_train.rl.environment import StopReason
from crucible_train.rl.metrics import clip_fraction, divergence, group_metrics, prefixed
from crucible_train.rl.sequences import policy_datum, sequences_of
from crucible_train.types import CISPO, DRO, GSPO, PPO, ImportanceSampling
from tests.rl.made import answers, episode, group, turn

EASY = group(
    episode(turn([1], [2, 2], reward=1.0, policy_step=3, parts={"right": 1.0}, metrics={"calls": 2.0})),
    episode(
        turn([1], [2], reward=0.0, policy_step=3, parts={"right": 0.0, "format": -0.5}),
        turn([1, 2, 3], [4, 4, 4], reward=-0.5, policy_step=4, parts={"format": -0.5}),
        reason=StopReason.MAX_TURNS,
    ),
    tags=("easy", "sums"),
    extra=(0.25, 0.0),
    failed=1,
)
"""Rewards 1.25 and -0.5."""
HARD = group(
    episode(turn([1], [2], reward=0.0, policy_step=5), reason=StopReason.MAX_TOKENS),
    episode(turn([1], [2], reward=0.0, policy_step=5)),
    tags=("hard", "sums"),
)


def test_a_step_of_two_groups():
    """Rewards 1.25, -0.5, 0, 0: mean 0.1875, mean square (1.5625 + 0.25) / 4 = 0.453125.

    Answers of 2, 1, 3, 1, 1 tokens in four episodes of 1, 2, 1, 1 turns, at staleness 3, 3, 2, 1, 1 of step 6.
    """
    assert group_metrics([EASY, HARD], 6) == pytest.approx(
        {
            "reward/mean": 0.1875,
            "reward/std": (0.453125 - 0.1875**2) ** 0.5,
            "reward/right": 0.5,
            "reward/format": -1.0,
            "sample/env_calls": 2.0,
            "reward/mean_easy": 0.375,
            "reward/mean_hard": 0.0,
            "reward/mean_sums": 0.1875,
            "sample/frac_all_good": 0.0,
            "sample/frac_all_bad": 0.5,
            "sample/frac_mixed": 0.5,
            "sample/stop_completed": 0.5,
            "sample/stop_max_turns": 0.25,
            "sample/stop_max_tokens": 0.25,
            "sample/num_turns": 1.25,
            "sample/answer_tokens": 1.6,
            "sample/max_answer_tokens": 3.0,
            "sample/num_tokens": 8.0,
            "sample/staleness": 2.0,
            "sample/num_failed": 1.0,
            "sample/num_groups": 2.0,
        }
    )


def fractions(*groups) -> list[float]:
    found = group_metrics(groups, 0)
    return [found[f"sample/frac_{kind}"] for kind in ("all_good", "all_bad", "mixed")]


def test_groups_are_all_good_all_bad_or_mixed():
    good, bad, mixed = answers((1.0, 1), (1.0, 1)), answers((0.0, 1), (0.0, 1)), answers((1.0, 1), (0.0, 1))
    assert fractions(good, bad, mixed, mixed) == [0.25, 0.25, 0.5]


def test_what_is_good_does_not_depend_on_the_other_groups_of_the_step():
    """A step on which all is right is all good, not all bad."""
    good, bad = answers((1.0, 1), (1.0, 1)), answers((0.0, 1), (0.0, 1))
    assert fractions(good, good) == [1.0, 0.0, 0.0]
    assert fractions(bad, bad) == [0.0, 1.0, 0.0]
    assert fractions(answers((0.5, 1)), answers((0.49, 1)), answers((9.0, 1))) == pytest.approx([2 / 3, 1 / 3, 0])


def test_a_step_on_which_nothing_could_be_played():
    assert group_metrics([], 3) == {"sample/num_failed": 0.0, "sample/num_groups": 0.0}


def test_names_can_be_prefixed():
    assert prefixed("train/", {"kl_v1": 1.0}) == {"train/kl_v1": 1.0}


def datum(logprobs: list[float], advantages: list[float]):
    (sequence,) = sequences_of(episode(turn([1, 2], [3] * len(logprobs), logprobs)))
    return policy_datum(sequence, np.array([9, 9, *advantages], np.float32), 0.1)


def test_how_far_the_trainer_is_from_the_sampler():
    """d = 0.5, -0.25 and 0.25: mean 1/6; squares 0.25 + 0.0625 + 0.0625 = 0.375 over 3, halved, is 1/16."""
    datums = [datum([-1.0, -2.0], [1, 1]), datum([-0.5], [1])]
    trainer = [np.array([-99, -1.5, -1.75], np.float32), np.array([-99, -0.75], np.float32)]
    assert divergence(datums, trainer) == pytest.approx({"kl_v1": 1 / 6, "kl_v2": 1 / 16, "entropy": 3.5 / 3})


RATIOS = np.log([1.5, 1.5, 0.5, 0.5, 1.1])
"""Of five tokens with these advantages, of which the last ratio is within 0.8 and 1.2."""
ADVANTAGES = [1, -1, 1, -1, 1]


@pytest.mark.parametrize(
    ("loss", "share"),
    [
        (PPO(), 2 / 5),  # 1.5 at A > 0 and 0.5 at A < 0
        (PPO(clip_low=0.0, clip_high=1.05), 2 / 5),  # 1.5 and 1.1 at A > 0
        (PPO(clip_low=0.0, clip_high=float("inf")), 0.0),
        (CISPO(clip_low=0.8, clip_high=1.2), 4 / 5),  # either side, whatever the advantage
        (CISPO(), 0.0),
    ],
)
def test_the_share_of_tokens_whose_gradient_is_bounded(loss, share: float):
    made = datum([-1.0] * 5, ADVANTAGES)
    assert clip_fraction(loss, [made], [np.array([50, *(RATIOS - 1)], np.float32)]) == pytest.approx(share)


def test_gspo_bounds_whole_sequences():
    """Mean log-ratios ln 2 / 2 and -ln 2 / 2: ratios 1.41, 0.71. At A > 0 the first alone is beyond, 2 of 4 tokens."""
    datums = [datum([-1.0, -1.0], [1, 1]), datum([-1.0, -1.0], [1, 1])]
    up = np.array([50, -1 + np.log(2), -1.0], np.float32)
    down = np.array([50, -1 - np.log(2), -1.0], np.float32)
    loss = GSPO(clip_low=0.8, clip_high=1.2)
    assert clip_fraction(loss, datums, [up, down]) == 0.5
    worse = [datum([-1.0, -1.0], [-1, -1]), datum([-1.0, -1.0], [-1, 1])]
    assert clip_fraction(loss, worse, [up, down]) == 0.25, "0.71 at A < 0 is beyond, for the one token that has it"


def test_losses_that_bound_nothing_have_no_such_share():
    made = datum([-1.0], [1])
    for loss in (ImportanceSampling(), DRO()):
        assert clip_fraction(loss, [made], [np.zeros(2, np.float32)]) is None
