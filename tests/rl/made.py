"""Trajectories and groups written out by hand."""

from collections.abc import Mapping, Sequence

from crucible_train.rl.environment import StopReason, Trajectory, TrajectoryGroup, Transition
from crucible_train.types import ModelInput, TokensWithLogprobs


def turn(
    prompt: Sequence[int],
    tokens: Sequence[int],
    logprobs: Sequence[float] | None = None,
    reward: float = 0.0,
    policy_step: int = 0,
    parts: Mapping[str, float] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Transition:
    logprobs = [-0.5] * len(tokens) if logprobs is None else logprobs
    action = TokensWithLogprobs(tuple(tokens), tuple(logprobs), "stop")
    return Transition(ModelInput.from_ints(list(prompt)), action, reward, policy_step, parts or {}, metrics or {})


def episode(*turns: Transition, reason: StopReason = StopReason.COMPLETED) -> Trajectory:
    return Trajectory(turns, reason)


def group(*trajectories: Trajectory, tags: Sequence[str] = (), extra: Sequence[float] = (), failed: int = 0):
    rewards = tuple(extra) or (0.0,) * len(trajectories)
    return TrajectoryGroup("a problem", trajectories, rewards, tuple(tags), failed)


def answers(*rewarded: tuple[float, int], reason: StopReason = StopReason.COMPLETED) -> TrajectoryGroup:
    """A group of one-turn episodes, each of a reward and a number of tokens."""
    return group(*(episode(turn([1, 2], [3] * size, reward=reward), reason=reason) for reward, size in rewarded))
