"""What an optimizer step is taken on: weights by hand, what is left out, penalties, truncated importance weights."""

import asyncio
from typing import Any

import numpy as np
import pytest

from crucible_train.rl.batch import TrainingBatch, training_batch, with_kl_in_advantage, with_truncated_importance
from crucible_train.rl.config import AlgorithmConfig
from crucible_train.rl.environment import StopReason, TrajectoryGroup
from crucible_train.rl.sequences import policy_datum, sequences_of, with_input
from crucible_train.types import GSPO, PPO, CrossEntropy, ImportanceSampling
from tests.rl.made import answers, episode, group, turn

MIXED = answers((1.0, 2), (0.0, 4))
"""Advantages 0.5 and -0.5, answers of 2 and of 4 tokens."""
ALIKE = answers((1.0, 3), (1.0, 1))


def batch_of(*groups: TrajectoryGroup, num_planned: int = 4, max_tokens: int = 8, **algorithm: Any) -> TrainingBatch:
    return training_batch(groups, AlgorithmConfig(**algorithm), num_planned=num_planned, max_tokens=max_tokens)


def of_actions(batch: TrainingBatch, name: str) -> list[list[float]]:
    """An input at the sampled tokens of each datum."""
    found = []
    for datum in batch.datums_D:
        is_action = datum.loss_fn_inputs["weights"].to_numpy() != 0
        found.append(datum.loss_fn_inputs[name].to_numpy()[is_action].tolist())
    return found


def joined(values: list[list[float]]) -> list[float]:
    return [value for row in values for value in row]


def flat(values: list[list[float]]) -> Any:
    return pytest.approx(joined(values), rel=1e-6)


def test_the_mean_over_tokens():
    """2 + 4 tokens weigh 1/6 each."""
    weights = of_actions(batch_of(MIXED), "weights")
    assert [len(row) for row in weights] == [2, 4]
    assert joined(weights) == flat([[1 / 6] * 6])
    assert of_actions(batch_of(MIXED), "advantages") == [[0.5] * 2, [-0.5] * 4]


def test_the_mean_over_answers_of_their_means():
    """Of 4 planned answers each weighs 1/4, over its own 2 or 4 tokens."""
    weights = of_actions(batch_of(MIXED, normalisation="sequence"), "weights")
    assert joined(weights) == flat([[1 / 8] * 2, [1 / 16] * 4])


def test_the_sum_over_answers_times_the_longest():
    """Of 4 planned answers of at most 8 tokens each token weighs 1/32."""
    weights = of_actions(batch_of(MIXED, normalisation="constant"), "weights")
    assert joined(weights) == flat([[1 / 32] * 6])


@pytest.mark.parametrize("normalisation", ["token", "sequence", "constant"])
def test_all_turns_of_an_answer_share_its_weight_and_its_advantage(normalisation: str):
    """Turns of 1 and 3 tokens, in one sequence or in two; another episode of 2 tokens."""
    plain = episode(turn([1], [5, 5]))
    merged = group(episode(turn([1], [2], reward=1.0), turn([1, 2, 3], [4, 4, 4])), plain)
    split = group(episode(turn([1], [2], reward=1.0), turn([9], [4, 4, 4])), plain)
    expected = {"token": [1 / 6] * 6, "sequence": [1 / 16] * 4 + [1 / 8] * 2, "constant": [1 / 32] * 6}
    for made, num_datums in ((merged, 2), (split, 3)):
        batch = batch_of(made, normalisation=normalisation)
        assert len(batch.datums_D) == num_datums
        assert joined(of_actions(batch, "weights")) == flat([expected[normalisation]])
        assert joined(of_actions(batch, "advantages")) == [0.5] * 4 + [-0.5] * 2


def test_group_rewards_count():
    """0 + 3 and 1 + 0 have mean 2."""
    made = group(episode(turn([1], [2])), episode(turn([1], [3], reward=1.0)), extra=(3.0, 0.0))
    assert of_actions(batch_of(made), "advantages") == [[1.0], [-1.0]]


def test_groups_rewarded_alike_are_left_out_and_the_others_count_for_no_more():
    batch = batch_of(ALIKE, MIXED, normalisation="sequence")
    assert [one.is_trained for one in batch.groups_P] == [False, True]
    assert [one.advantages_G.tolist() for one in batch.groups_P] == [[0.0, 0.0], [0.5, -0.5]]
    assert of_actions(batch, "weights") == of_actions(batch_of(MIXED, normalisation="sequence"), "weights")


def test_groups_rewarded_alike_may_be_kept():
    """Then their 4 tokens count in the mean over tokens: each weighs 1/10."""
    batch = batch_of(ALIKE, MIXED, remove_constant_groups=False)
    assert all(one.is_trained for one in batch.groups_P)
    assert joined(of_actions(batch, "weights")) == flat([[1 / 10] * 10])
    assert of_actions(batch, "advantages") == [[0.0] * 3, [0.0], [0.5] * 2, [-0.5] * 4]


def test_with_a_baseline_over_all_groups_groups_rewarded_alike_teach_too():
    """Single answers of reward 1 and 0 are 0.5 better and worse than the mean of both."""
    batch = batch_of(answers((1.0, 1)), answers((0.0, 1)), advantage="batch_mean")
    assert [one.is_trained for one in batch.groups_P] == [True, True]
    assert of_actions(batch, "advantages") == [[0.5], [-0.5]]
    assert not batch_of(answers((1.0, 1)), answers((1.0, 1)), advantage="batch_mean").datums_D


def test_nothing_to_train_on_is_no_datum():
    assert batch_of() == TrainingBatch((), ())
    assert batch_of(ALIKE).datums_D == ()


@pytest.mark.parametrize("reason", [StopReason.MAX_TOKENS, StopReason.CONTEXT_OVERFLOW, StopReason.TIMEOUT])
def test_answers_that_were_cut_off_may_be_masked(reason: StopReason):
    """The advantages are those of the whole group all the same; the two tokens that are left weigh 1/2."""
    made = group(episode(turn([1], [2, 2], reward=1.0)), episode(turn([1], [3] * 4), reason=reason))
    masked = batch_of(made, mask_truncated=True)
    assert of_actions(masked, "advantages") == [[0.5, 0.5]]
    assert of_actions(masked, "weights") == [[0.5, 0.5]]
    assert len(batch_of(made).datums_D) == 2


@pytest.mark.parametrize("reason", [StopReason.COMPLETED, StopReason.PARSE_ERROR, StopReason.MAX_TURNS])
def test_answers_that_ended_otherwise_are_not_masked(reason: StopReason):
    made = group(episode(turn([1], [2], reward=1.0)), episode(turn([1], [3]), reason=reason))
    assert len(batch_of(made, mask_truncated=True).datums_D) == 2


def test_an_episode_without_a_token_is_no_datum_but_counts_in_its_group():
    made = group(episode(turn([1], [2], reward=1.0)), episode(reason=StopReason.TIMEOUT))
    batch = batch_of(made)
    assert of_actions(batch, "advantages") == [[0.5]]
    assert [one.advantages_G.tolist() for one in batch.groups_P] == [[0.5, -0.5]]


def test_overlong_answers_are_worth_less():
    """Of at most 8 tokens, over the last 4: answers of 4, 6 and 8 lose 0, 0.5 and 1, times 0.6. Mean -0.3."""
    made = answers((1.0, 4), (1.0, 6), (1.0, 8))
    batch = batch_of(made, overlong_buffer_tokens=4, overlong_penalty=0.6)
    assert [round(row[0], 6) for row in of_actions(batch, "advantages")] == [0.3, 0.0, -0.3]
    assert made.rewards_G == (1.0, 1.0, 1.0), "what was rewarded is left as it was"
    assert not batch_of(made, overlong_buffer_tokens=4, overlong_penalty=0.0).datums_D


def test_the_longest_turn_says_whether_an_episode_is_overlong():
    """Turns of 6 and 1 tokens: 2 beyond 4, of 4."""
    made = group(episode(turn([1], [2] * 6), turn([9], [3])), episode(turn([1], [3])))
    batch = batch_of(made, overlong_buffer_tokens=4)
    assert batch.groups_P[0].advantages_G.tolist() == [-0.25, 0.25]


@pytest.mark.parametrize("loss", [ImportanceSampling(), PPO(), GSPO()])
@pytest.mark.parametrize("max_tokens", [8, 16, 40])
def test_how_a_batch_is_cut_into_passes_does_not_change_its_gradient(loss: Any, max_tokens: int, gradient_of: Any):
    datums = batch_of(*GROUPS).datums_D
    (whole_loss, whole), (cut_loss, cut) = gradient_of(datums, loss, 1000), gradient_of(datums, loss, max_tokens)
    assert np.abs(whole).max() > 1e-3
    assert cut_loss == pytest.approx(whole_loss, rel=1e-4, abs=1e-6)
    assert cut == pytest.approx(whole, rel=1e-3, abs=1e-6)


GROUPS = [
    group(
        episode(turn([symbol, 8], [symbol, 9], [-2.2, -2.3], reward=1.0)),
        episode(turn([symbol, 8], [symbol + 1], [-2.4]), turn([symbol, 8, symbol + 1, 8], [3, 2, 9], [-2, -2.5, -2])),
        episode(turn([symbol, 8], [5, 4, 3], [-2.1, -2.2, -2.6])),
    )
    for symbol in range(4)
]


@pytest.mark.parametrize("normalisation", ["sequence", "constant"])
def test_parts_of_a_batch_have_gradients_that_sum_to_that_of_the_whole(normalisation: str, gradient_of: Any):
    """What streamed minibatches rely on."""

    def gradient(groups: Any) -> Any:
        return gradient_of(batch_of(*groups, num_planned=12, normalisation=normalisation).datums_D)[1]

    whole, parts = gradient(GROUPS), [gradient(GROUPS[:1]), gradient(GROUPS[1:3]), gradient(GROUPS[3:])]
    assert np.abs(whole).max() > 1e-4
    assert sum(parts) == pytest.approx(whole, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("normalisation", ["token", "sequence", "constant"])
def test_a_substep_of_like_groups_has_the_gradient_of_the_batch(normalisation: str, gradient_of: Any):
    """Half of the groups, twice the same, with half of the answers planned: the step is as long, not half as long."""

    def gradient(groups: Any, num_planned: int) -> Any:
        batch = batch_of(*groups, num_planned=num_planned, normalisation=normalisation)
        return gradient_of(batch.datums_D)[1]

    whole, half = gradient(GROUPS[:2] * 2, 12), gradient(GROUPS[:2], 6)
    assert np.abs(whole).max() > 1e-4
    assert half == pytest.approx(whole, rel=1e-3, abs=1e-6)


def datums_of(*logprobs: list[float], advantage: float = 1.0) -> list[Any]:
    """Datums of the prompt 1 2 and as many sampled tokens as there are log-probabilities."""
    made = [sequences_of(episode(turn([1, 2], [3] * len(row), row)))[0] for row in logprobs]
    return [policy_datum(one, np.full(one.tokens_T.size, advantage, np.float32), 1.0) for one in made]


def advantages_of(datums: list[Any]) -> list[list[float]]:
    return [datum.loss_fn_inputs["advantages"].tolist() for datum in datums]


def test_the_divergence_in_the_advantage():
    """d = logp - logp_ref is 0.5, 1.0 and 0.0: mean 0.5, so that A += 0.1 (0.5 - d) adds 0, -0.05 and 0.05."""
    datums = datums_of([-0.5, -1.0], [-2.0])
    reference = [np.array([7, -1.0, -2.0], np.float32), np.array([7, -2.0], np.float32)]
    changed = with_kl_in_advantage(datums, reference, 0.1, "k1")
    assert advantages_of(changed) == [[0, pytest.approx(1.0), pytest.approx(0.95)], [0, pytest.approx(1.05)]]
    assert advantages_of(datums) == [[0, 1, 1], [0, 1]]


def test_the_divergence_in_the_advantage_by_k3():
    """d = ln 2 and 0 give k3 = 1/2 - 1 + ln 2 = 0.193147 and 0; mean 0.0965736, times 10."""
    datums = datums_of([-0.5, -1.0])
    reference = [np.array([0, -0.5 - np.log(2), -1.0], np.float32)]
    changed = with_kl_in_advantage(datums, reference, 10.0, "k3")
    assert advantages_of(changed)[0] == pytest.approx([0, 1 - 0.965736, 1 + 0.965736], abs=1e-5)


def test_the_divergence_in_the_advantage_rewards_none_for_its_own_sake():
    datums = datums_of([-0.5, -1.0, -0.1], [-2.0, -0.3])
    draw = np.random.default_rng(0)
    reference = [-draw.random(datum.num_tokens).astype(np.float32) for datum in datums]
    changed = with_kl_in_advantage(datums, reference, 0.3, "k1")
    assert sum(map(sum, advantages_of(changed))) == pytest.approx(5.0, abs=1e-5)


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.1 * (0.5 + -0.25)), ("k3", None)])
def test_the_divergence_in_the_loss(estimator: Any, value: float | None, engine: Any, gradient_of: Any):
    """The engine adds coef * k at each token: k1 = d, k3 = exp(-d) - 1 + d, with d = logp - logp_ref."""
    datums = datums_of([-2.0, -2.0], advantage=0.0)
    _, nothing = gradient_of(datums)
    assert not nothing.any()
    (now,) = asyncio.run(engine.forward(datums, CrossEntropy())).logprobs_D
    difference = np.array([0, 0.5, -0.25], np.float32)
    with_reference = [with_input(datums[0], "reference_logprobs", now - difference)]
    expected = value if value is not None else 0.1 * sum(np.exp(-d) - 1 + d for d in (0.5, -0.25))
    loss, gradient = gradient_of(with_reference, ImportanceSampling(kl_coef=0.1, kl_estimator=estimator))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert np.abs(gradient).max() > 1e-4


def test_truncated_importance_weights():
    """p_now / p_sampler is 2, 1/2 and 8; at most 4. Advantages are multiplied, ratios begin anew at 1."""
    datums = datums_of([-1.0, -1.0, -3.0], advantage=0.5)
    current = [np.array([9, -1 + np.log(2), -1 - np.log(2), -3 + np.log(8)], np.float32)]
    (changed,) = with_truncated_importance(datums, current, 4.0)
    assert changed.loss_fn_inputs["advantages"].tolist() == pytest.approx([0, 1.0, 0.25, 2.0], rel=1e-5)
    assert changed.loss_fn_inputs["logprobs"].tolist() == pytest.approx([0, *current[0][1:].tolist()], rel=1e-6)
    assert changed.loss_fn_inputs["weights"] == datums[0].loss_fn_inputs["weights"]
    assert datums[0].loss_fn_inputs["logprobs"].tolist() == [0, -1, -1, -3]
