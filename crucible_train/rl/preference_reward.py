"""Rewards from comparing the answers of a group with each other: every pair, in both orders.

An answer's reward is its mean over all comparisons it is in: 1 where it is preferred to every other, -1 where every
other is. Asking in both orders takes away what a model gives for a place.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from itertools import permutations
from typing import Protocol, runtime_checkable

from crucible_train.rl.environment import Trajectory
from crucible_train.rl.prompts import GroupReward, Prompt
from crucible_train.types import Message


@runtime_checkable
class PreferenceModel(Protocol):
    """Says which of two answers is better."""

    async def compare(self, prompt: Sequence[Message], a: Message, b: Message) -> float:
        """1 where ``a`` is better without doubt, -1 where ``b`` is, 0 where neither."""


Comparison = Callable[[Sequence[Message], Message, Message], float | Awaitable[float]]
"""What ``PreferenceModel.compare`` is, as a function that may also answer at once."""


async def preference_rewards(
    compare: PreferenceModel | Comparison,
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
    pairs = [*permutations(range(len(answers)), 2)]
    function = compare.compare if isinstance(compare, PreferenceModel) else compare
    found = await asyncio.gather(*(_ask(function, prompt, answers[a], answers[b]) for a, b in pairs))
    sums = [0.0] * len(answers)
    for (a, b), preference in zip(pairs, found, strict=True):
        sums[a] += preference
        sums[b] -= preference
    num_comparisons = max(2 * (len(answers) - 1), 1)
    return [scale * total / num_comparisons for total in sums]


def by_preference(compare: PreferenceModel | Comparison, scale: float = 1.0) -> GroupReward:
    """``preference_rewards`` as the group reward of prompts from a data set."""

    async def reward(prompt: Prompt, trajectories_G: Sequence[Trajectory]) -> Sequence[float]:
        return await preference_rewards(compare, prompt.messages, trajectories_G, scale)

    return reward


async def _ask(function: Comparison, prompt: Sequence[Message], a: Message, b: Message) -> float:
    asked = function(prompt, a, b)
    preference = float(await asked if isawaitable(asked) else asked)
    if not -1 <= preference <= 1:
        raise ValueError(f"a comparison gave {preference}, which is not between -1 and 1")
    return preference


def _answer(trajectory: Trajectory) -> Message:
    if not trajectory.messages or trajectory.messages[-1].role != "assistant":
        raise ValueError("an episode that does not end with an answer cannot be compared")
    return trajectory.messages[-1]
