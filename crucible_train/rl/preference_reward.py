"""Rewards from comparing the answers of a group with each other: every pair, in both orders.

An answer's reward is its mean over all comparisons it is in: 1 where it is preferred to every other, -1 where every
other is. Asking in both orders takes away what a model gives for a place.
"""

from collections.abc import Sequence
from itertools import combinations

from crucible_train.judges import Asked, PreferenceModel, judged
from crucible_train.rl.environment import Trajectory
from crucible_train.rl.prompts import GroupReward, Prompt
from crucible_train.types import Message


async def preference_rewards(
    compare: Asked,
    prompt: Sequence[Message],
    trajectories_G: Sequence[Trajectory],
    scale: float = 1.0,
) -> Sequence[float]:
    """What each answer of a group is worth beside the others, from -scale to scale; all pairs are asked at once.

    Args:
        compare: what compares.
        prompt: what was answered.
        trajectories_G: the answers; compared is the last message of each.
        scale: what it is worth to be preferred to all.

    Raises:
        ValueError: a comparison is not between -1 and 1, or an episode has no answer.
    """
    answers = [_answer(trajectory) for trajectory in trajectories_G]
    pairs = [*combinations(range(len(answers)), 2)]
    found = await judged(compare, prompt, [(answers[a], answers[b]) for a, b in pairs])
    sums = [0.0] * len(answers)
    for (a, b), judgement in zip(pairs, found, strict=True):
        sums[a] += judgement.score
        sums[b] -= judgement.score
    return [scale * total / max(len(answers) - 1, 1) for total in sums]


def by_preference(compare: Asked, scale: float = 1.0) -> GroupReward:
    """``preference_rewards`` as the group reward of prompts from a data set."""

    async def reward(prompt: Prompt, trajectories_G: Sequence[Trajectory]) -> Sequence[float]:
        return await preference_rewards(compare, prompt.messages, trajectories_G, scale)

    return reward


def _answer(trajectory: Trajectory) -> Message:
    if not trajectory.messages or trajectory.messages[-1].role != "assistant":
        raise ValueError("an episode that does not end with an answer cannot be compared")
    return trajectory.messages[-1]


__all__ = ["Asked", "PreferenceModel", "by_preference", "preference_rewards"]
