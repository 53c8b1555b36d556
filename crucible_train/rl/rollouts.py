"""Playing episodes: one alone, and the group of one problem.

The first turns of a group are asked for in the same moment of the event loop, so that the sampler answers them as one
batch and reads their prompt once. An answer that reaches a limit is given to its environment all the same; then the
episode ends with the limit as its reason and whatever reward there was.
"""

import asyncio
import math
from collections.abc import Callable, Sequence

from crucible_train.errors import Interrupted
from crucible_train.ports import SamplingClient
from crucible_train.rl.environment import Env, EnvGroupBuilder, StopReason, Trajectory, TrajectoryGroup
from crucible_train.rl.episode import Episode, Policy
from crucible_train.rl.lockstep import Seated
from crucible_train.rl.rollout_config import RolloutConfig

OnFailure = Callable[[str, str], None]
"""Told of every failure: the problem, and what failed."""


async def rollout(
    env: Env,
    client: SamplingClient,
    config: RolloutConfig,
    seed: int,
    policy_step: Callable[[], int],
    *,
    problem: str = "",
    sample: int = 0,
) -> Trajectory:
    """Play one episode to its end and close its environment.

    What fails is kept on the trajectory, with the answers until then. The draws of a turn follow from ``seed``, the
    problem, the number of the sample and that of the turn.

    Raises:
        RolloutError: the episode failed, and ``config`` tolerates no failure.
    """
    episode = Episode(env, Policy(client, config, seed, policy_step), problem, sample)
    try:
        await episode.begin()
        return await episode.play()
    finally:
        await episode.close()


async def rollout_group(
    builder: EnvGroupBuilder,
    group_size: int,
    client: SamplingClient,
    config: RolloutConfig,
    seed: int,
    policy_step: Callable[[], int],
    *,
    on_failure: OnFailure | None = None,
) -> TrajectoryGroup | None:
    """Play the episodes of one problem; None where too few of them are left.

    Args:
        builder: the problem.
        group_size: how many episodes, G.
        client: what samples.
        config: limits, sampling and what becomes of failures.
        seed: decides all draws; a problem that is played again, at another step or beside itself, needs another.
        policy_step: how many optimizer steps the weights have taken by now.
        on_failure: told of each failure, also of a group that is given up.

    Raises:
        RolloutError: something failed, and ``config`` tolerates no failure.
    """
    policy = Policy(client, config, seed, policy_step)
    good: dict[int, Trajectory] = {}
    errors: list[str] = []
    for attempt in range(config.failures.num_tries):
        if not (missing := [sample for sample in range(group_size) if sample not in good]):
            break
        played = await _attempt(builder, missing, policy, attempt)
        good |= {sample: one for sample, one in zip(missing, played, strict=True) if one.error is None}
        for error in (one.error for one in played if one.error is not None):
            errors.append(error)
            if on_failure is not None:
                on_failure(builder.problem, error)
    if not config.failures.keeps(len(good), group_size):
        return None
    trajectories_G = tuple(good[sample] for sample in sorted(good))
    try:
        rewards_G = tuple(float(reward) for reward in await builder.group_rewards(trajectories_G))
        if not all(map(math.isfinite, rewards_G)):
            raise ValueError(f"they are {rewards_G}")
        num_failed = group_size - len(good)
        return TrajectoryGroup(
            builder.problem, trajectories_G, rewards_G, tuple(builder.tags), num_failed, tuple(errors)
        )
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - whatever judges may raise anything; its group alone is lost
        failure = policy.failure(f"{builder.problem}, group rewards", error)
        if on_failure is not None:
            on_failure(builder.problem, failure)
        return None


async def _attempt(
    builder: EnvGroupBuilder, samples: Sequence[int], policy: Policy, attempt: int
) -> Sequence[Trajectory]:
    """An episode for each of these numbers; where there are no environments, all of them fail."""
    seats = policy.client if isinstance(policy.client, Seated) else None
    if attempt and seats is not None:
        seats.enter(len(samples))
    try:
        envs = await builder.make_envs(len(samples))
        if len(envs) != len(samples):
            await asyncio.gather(*(env.close() for env in envs))
            raise ValueError(f"{len(samples)} were asked for, but {len(envs)} were made")
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - an environment may raise anything; its group alone is lost
        failure = policy.failure(f"{builder.problem}, making its environments", error)
        if seats is not None:
            for _ in samples:
                seats.leave()
        return [Trajectory((), StopReason.ERROR, error=failure)] * len(samples)
    numbered = zip(samples, envs, strict=True)
    return await _play([Episode(env, policy, builder.problem, sample, attempt) for sample, env in numbered])


async def _play(episodes: Sequence[Episode]) -> Sequence[Trajectory]:
    """Play together. Every environment is closed, whatever happens."""
    try:
        async with asyncio.TaskGroup() as group:
            for episode in episodes:
                group.create_task(episode.begin())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(episode.play()) for episode in episodes]
        return [task.result() for task in tasks]
    except BaseExceptionGroup as raised:
        first = next((one for one in raised.exceptions if isinstance(one, Interrupted)), raised.exceptions[0])
        raise first from first.__cause__
    finally:  # those that played are closed; where others are not, what interrupted them is on its way up
        await asyncio.gather(*(episode.close() for episode in episodes), return_exceptions=True)
