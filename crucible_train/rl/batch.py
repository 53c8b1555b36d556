"""What an optimizer step is taken on: which groups, with which advantages, weighed how.

Axes: P groups, G samples of a group, D datums, N positions of a datum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crucible_train.rl.advantages import Floats, advantages, overlong_penalty
from crucible_train.rl.config import AlgorithmConfig
from crucible_train.rl.environment import StopReason, Trajectory, TrajectoryGroup
from crucible_train.rl.sequences import policy_datum, sequences_of, with_input
from crucible_train.types import Datum

_CUT_OFF = frozenset({StopReason.MAX_TOKENS, StopReason.CONTEXT_OVERFLOW, StopReason.TIMEOUT})


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group, the advantages of its samples before any penalty on the divergence, and whether it is trained on."""

    group: TrajectoryGroup
    advantages_G: Floats
    is_trained: bool


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What was played, and the datums that it becomes: one or more a trajectory that is trained on."""

    groups_P: tuple[ScoredGroup, ...]
    datums_D: tuple[Datum, ...]


def scored_groups(
    groups: Sequence[TrajectoryGroup], config: AlgorithmConfig, *, max_tokens: int
) -> tuple[ScoredGroup, ...]:
    """Groups with their advantages.

    One whose advantages are all 0 teaches nothing but what a penalty on the divergence does, and may be left out where
    there is none.
    """
    keeps_all = not config.remove_constant_groups or config.kl_coef > 0
    shaped = [_shaped_rewards(group, config, max_tokens) for group in groups]
    return tuple(
        ScoredGroup(group, values, keeps_all or bool(values.any()))
        for group, values in zip(groups, advantages(shaped, config.advantage), strict=True)
    )


def training_batch(
    groups: Sequence[TrajectoryGroup], config: AlgorithmConfig, *, num_planned: int, max_tokens: int
) -> TrainingBatch:
    """Groups, scored and turned into datums: those of one optimizer step. As ``training_part`` otherwise."""
    scored = scored_groups(groups, config, max_tokens=max_tokens)
    return training_part(scored, config, num_planned=num_planned, max_tokens=max_tokens)


def training_part(
    scored: Sequence[ScoredGroup], config: AlgorithmConfig, *, num_planned: int, max_tokens: int
) -> TrainingBatch:
    """Turn scored groups into the datums of one optimizer step.

    Args:
        scored: what was played, scored among all that was played with it.
        config: how the loss is normalised.
        num_planned: trajectories an optimizer step is planned to have: what ``sequence`` and ``constant`` divide by,
            so that a group that teaches nothing, or is missing, does not make the others count for more.
        max_tokens: longest answer, for ``constant`` and for what overlong answers cost.
    """
    counted = [
        (trajectory, float(advantage))
        for one in scored
        for trajectory, advantage in zip(one.group.trajectories_G, one.advantages_G, strict=True)
        if one.is_trained and not (config.mask_truncated and trajectory.reason in _CUT_OFF)
    ]
    num_tokens = sum(trajectory.num_sampled_tokens for trajectory, _ in counted)
    datums = [
        datum
        for trajectory, advantage in counted
        if trajectory.num_sampled_tokens
        for datum in _datums(
            trajectory,
            advantage,
            _weight(config, trajectory.num_sampled_tokens, num_tokens, num_planned, max_tokens),
        )
    ]
    return TrainingBatch(tuple(scored), tuple(datums))


def with_kl_in_advantage(
    datums_D: Sequence[Datum], reference_D: Sequence[np.ndarray], coef: float, estimator: str
) -> list[Datum]:
    """Datums whose advantages pay for the divergence from the reference: ``A += coef (mean(d) - d)``.

    d is the estimate at each sampled token, of its log-probability when it was sampled; the mean is over all of them,
    so that the penalty moves probability between tokens and rewards none for its own sake.
    """
    differences = []
    for datum, reference_N in zip(datums_D, reference_D, strict=True):
        difference_N = datum.loss_fn_inputs["logprobs"].to_numpy() - reference_N
        differences.append(difference_N if estimator == "k1" else np.expm1(-difference_N) + difference_N)
    counts = [datum.loss_fn_inputs["weights"].to_numpy() != 0 for datum in datums_D]
    mean = float(np.concatenate([d[c] for d, c in zip(differences, counts, strict=True)]).mean(dtype=np.float64))
    return [
        with_input(
            datum,
            "advantages",
            (datum.loss_fn_inputs["advantages"].to_numpy() + coef * (mean - d) * c).astype(np.float32),
        )
        for datum, d, c in zip(datums_D, differences, counts, strict=True)
    ]


def with_truncated_importance(
    datums_D: Sequence[Datum], current_D: Sequence[np.ndarray], max_weight: float
) -> list[Datum]:
    """Datums whose ratios are to the weights at hand, and whose advantages make up for who sampled.

    The advantage is multiplied by ``min(p_now / p_sampler, max_weight)`` (truncated importance sampling, Ionides 2008;
    Yao et al., "Your efficient RL framework secretly brings you off-policy training", 2025), and ``logprobs`` becomes
    what the weights say before the step.
    """
    found = []
    for datum, current_N in zip(datums_D, current_D, strict=True):
        counts = datum.loss_fn_inputs["weights"].to_numpy() != 0
        ratio_N = np.exp(current_N - datum.loss_fn_inputs["logprobs"].to_numpy())
        weight_N = np.where(counts, np.minimum(ratio_N, np.float32(max_weight)), np.float32(0))
        advantages_N = (datum.loss_fn_inputs["advantages"].to_numpy() * weight_N).astype(np.float32)
        corrected = with_input(datum, "advantages", advantages_N)
        found.append(with_input(corrected, "logprobs", np.where(counts, current_N, np.float32(0))))
    return found


def _shaped_rewards(group: TrajectoryGroup, config: AlgorithmConfig, max_tokens: int) -> list[float]:
    return [
        reward
        + config.overlong_penalty
        * overlong_penalty(_longest_answer(trajectory), max_tokens, config.overlong_buffer_tokens)
        for reward, trajectory in zip(group.rewards_G, group.trajectories_G, strict=True)
    ]


def _longest_answer(trajectory: Trajectory) -> int:
    return max((len(transition.action.tokens) for transition in trajectory.transitions), default=0)


def _datums(trajectory: Trajectory, advantage: float, weight: float) -> list[Datum]:
    return [
        policy_datum(sequence, np.full(sequence.tokens_T.size, advantage, np.float32), weight)
        for sequence in sequences_of(trajectory)
    ]


def _weight(config: AlgorithmConfig, own_tokens: int, all_tokens: int, num_planned: int, max_tokens: int) -> float:
    match config.normalisation:
        case "token":
            return 1.0 / all_tokens
        case "sequence":
            return 1.0 / (num_planned * own_tokens)
        case "constant":
            return 1.0 / (num_planned * max_tokens)
