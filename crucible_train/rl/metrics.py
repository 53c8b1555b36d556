"""The numbers of a step: rewards, how answers ended, how far the policy has moved.

With d = log p_sampler - log p_trainer at each sampled token,

    kl_v1 = mean(d)          kl_v2 = mean(d^2) / 2          both estimate KL(sampler || trainer) (Schulman, 2020)
    entropy = -mean(log p_sampler)                          unbiased where answers are sampled at temperature 1

Axes: P groups, G samples of a group, D datums, N positions of a datum.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from crucible_train.rl.advantages import is_constant
from crucible_train.rl.environment import StopReason, Trajectory, TrajectoryGroup
from crucible_train.types import CISPO, GSPO, PPO, Datum, PolicyLoss

Metrics = dict[str, float]
_GOOD = 0.5
"""From this reward on a group of equal rewards is good: halfway where wrong is 0 and right is 1."""


def group_metrics(groups: Sequence[TrajectoryGroup], policy_step: int) -> Metrics:
    """What was played: rewards and their parts, by tag; groups by what they teach; lengths, turns, ends, staleness.

    Args:
        groups: every group of the step, those that are left out of training too.
        policy_step: optimizer steps that the weights to be trained have taken; staleness is measured from there.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories_G]
    num_failed = sum(group.num_failed for group in groups)
    if not trajectories:
        return {"sample/num_failed": float(num_failed), "sample/num_groups": float(len(groups))}
    rewards = [reward for group in groups for reward in group.rewards_G]
    return {
        "reward/mean": _mean(rewards),
        "reward/std": float(np.std(rewards)),
        **_parts(trajectories),
        **_by_tag(groups),
        **_kinds_of_groups(groups),
        **_ends(trajectories),
        **_sizes(trajectories),
        "sample/staleness": _mean(
            policy_step - transition.policy_step for one in trajectories for transition in one.transitions
        ),
        "sample/num_failed": float(num_failed),
        "sample/num_groups": float(len(groups)),
    }


def divergence(datums_D: Sequence[Datum], logprobs_D: Sequence[np.ndarray]) -> Metrics:
    """``kl_v1``, ``kl_v2`` and ``entropy`` over sampled tokens, where the trainer's log-probabilities are given."""
    sampled = np.concatenate([_counted(datum, datum.loss_fn_inputs["logprobs"].to_numpy()) for datum in datums_D])
    found = np.concatenate([_counted(datum, values) for datum, values in zip(datums_D, logprobs_D, strict=True)])
    difference = sampled.astype(np.float64) - found
    return {
        "kl_v1": float(difference.mean()),
        "kl_v2": float(np.square(difference).mean() / 2),
        "entropy": float(-sampled.mean(dtype=np.float64)),
    }


def clip_fraction(loss: PolicyLoss, datums_D: Sequence[Datum], logprobs_D: Sequence[np.ndarray]) -> float | None:
    """The share of sampled tokens whose gradient the loss bounds; None where it bounds none.

    ppo and gspo: the ratio is beyond the bound on the side where the advantage would push it further. cispo: it is
    beyond either.
    """
    if not isinstance(loss, PPO | CISPO | GSPO):
        return None
    num_clipped = num = 0
    for datum, values in zip(datums_D, logprobs_D, strict=True):
        log_ratio = _counted(datum, values) - _counted(datum, datum.loss_fn_inputs["logprobs"].to_numpy())
        if isinstance(loss, GSPO):
            log_ratio = np.full_like(log_ratio, log_ratio.mean()) if log_ratio.size else log_ratio
        ratio = np.exp(log_ratio.astype(np.float64))
        is_high, is_low = ratio > loss.clip_high, ratio < loss.clip_low
        if not isinstance(loss, CISPO):
            advantage = _counted(datum, datum.loss_fn_inputs["advantages"].to_numpy())
            is_high, is_low = is_high & (advantage > 0), is_low & (advantage < 0)
        num_clipped += int((is_high | is_low).sum())
        num += ratio.size
    return num_clipped / num if num else None


def _counted(datum: Datum, values_N: np.ndarray) -> np.ndarray:
    counts_N = datum.loss_fn_inputs["weights"].to_numpy() != 0
    return np.asarray(values_N[counts_N])


def _parts(trajectories: Sequence[Trajectory]) -> Metrics:
    """The mean over trajectories of each part of the reward, and of whatever else environments measured."""
    found: dict[str, list[float]] = defaultdict(list)
    for trajectory in trajectories:
        sums: Counter[str] = Counter()
        for transition in trajectory.transitions:
            for name, value in transition.reward_parts.items():
                sums[f"reward/{name}"] += value  # type: ignore[assignment]  # Counter adds any number
            for name, value in transition.metrics.items():
                sums[f"sample/env_{name}"] += value  # type: ignore[assignment]
        for name, value in sums.items():
            found[name].append(value)
    return {name: _mean(values) for name, values in sorted(found.items())}


def _by_tag(groups: Sequence[TrajectoryGroup]) -> Metrics:
    found: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        for tag in group.tags:
            found[f"reward/mean_{tag}"].extend(group.rewards_G)
    return {name: _mean(values) for name, values in sorted(found.items())}


def _kinds_of_groups(groups: Sequence[TrajectoryGroup]) -> Metrics:
    """Shares of groups whose samples were all rewarded alike, ``_GOOD`` and up or less, and of the mixed ones."""
    played = [group for group in groups if group.trajectories_G]
    constant = [group for group in played if is_constant(group.rewards_G)]
    num_good = sum(group.rewards_G[0] >= _GOOD for group in constant)
    return {
        "sample/frac_all_good": num_good / len(played),
        "sample/frac_all_bad": (len(constant) - num_good) / len(played),
        "sample/frac_mixed": 1 - len(constant) / len(played),
    }


def _ends(trajectories: Sequence[Trajectory]) -> Metrics:
    counts = Counter(trajectory.reason for trajectory in trajectories)
    return {f"sample/stop_{reason}": counts[reason] / len(trajectories) for reason in StopReason if counts[reason]}


def _sizes(trajectories: Sequence[Trajectory]) -> Metrics:
    answers = [len(transition.action.tokens) for one in trajectories for transition in one.transitions]
    return {
        "sample/num_turns": _mean(len(one.transitions) for one in trajectories),
        "sample/answer_tokens": _mean(answers),
        "sample/max_answer_tokens": float(max(answers, default=0)),
        "sample/num_tokens": float(sum(answers)),
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0


def prefixed(prefix: str, metrics: Mapping[str, float]) -> Metrics:
    """The same numbers with a prefix to their names."""
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def progress(num_problems: int, num_train: int | None) -> dict[str, float]:
    """How many problems are trained on, and how many passes that is where there is an end to them."""
    passes = {} if num_train is None else {"progress/epoch": num_problems / num_train}
    return {"progress/num_problems": float(num_problems), **passes}
