"""Playing held-out problems once each, to measure a model."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crucible_train.errors import RolloutError
from crucible_train.ports import SamplingClient
from crucible_train.rl.environment import EnvGroupBuilder, Trajectory
from crucible_train.rl.lockstep import Lockstep, seats_of
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.rl.rollouts import OnFailure, rollout_group
from crucible_train.seeds import fold


@dataclass(frozen=True, slots=True)
class Played:
    """A held-out problem and how it went: ``row`` is its number among them, None stands for an episode that failed."""

    row: int
    problem: str
    trajectory: Trajectory | None

    def to_json(self) -> dict[str, Any]:
        """As a line of ``results.jsonl``."""
        found: dict[str, Any] = {"kind": "problem", "row": self.row, "problem": self.problem}
        if self.trajectory is None:
            return found | {"reward": None}
        return found | {
            "reward": self.trajectory.reward,
            "parts": reward_parts(self.trajectory),
            "reason": str(self.trajectory.reason),
            "num_turns": len(self.trajectory.transitions),
            "num_tokens": self.trajectory.num_sampled_tokens,
            "messages": [message.to_dict() for message in self.trajectory.messages],
        }


async def play_held_out(
    client: SamplingClient,
    problems: Sequence[EnvGroupBuilder],
    config: RolloutConfig,
    seed: int,
    on_failure: OnFailure = lambda _problem, _error: None,
) -> list[Played]:
    """Play every problem once, all at the same time, in lockstep.

    Raises:
        RolloutError: an episode failed, and ``config`` tolerates none; or all of them failed.
    """
    failures: list[str] = []

    def tell(problem: str, error: str) -> None:
        failures.append(error)
        on_failure(problem, error)

    lockstep = Lockstep(client, len(problems))

    async def play(row: int, builder: EnvGroupBuilder) -> Played:
        draws = fold(seed, "held out", row)
        with seats_of(lockstep, 1) as seat:
            group = await rollout_group(builder, 1, seat, config, draws, lambda: 0, on_failure=tell)
        return Played(row, builder.problem, None if group is None else group.trajectories_G[0])

    played = list(await asyncio.gather(*(play(row, builder) for row, builder in enumerate(problems))))
    if problems and all(one.trajectory is None for one in played):
        raise RolloutError(f"all {len(played)} held-out episodes failed; the first: {failures[0]}")
    return played


def held_out_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean reward, of each of its parts, the share of answers that ended themselves, and their length.

    Episodes that failed count as nothing won: ``eval/num_failed`` says how many there were.
    """
    played = [row for row in rows if row["reward"] is not None]
    if not rows:
        return {}
    names = sorted({name for row in played for name in row["parts"]})
    return {
        "eval/reward": sum(row["reward"] for row in played) / len(rows),
        **{f"eval/{name}": sum(row["parts"].get(name, 0.0) for row in played) / len(rows) for name in names},
        "eval/answer_tokens": sum(row["num_tokens"] for row in played) / max(1, len(played)),
        "eval/num_failed": float(len(rows) - len(played)),
    }


def reward_parts(trajectory: Trajectory) -> dict[str, float]:
    """The parts of a trajectory's reward, each summed over its turns."""
    found: dict[str, float] = {}
    for transition in trajectory.transitions:
        for name, value in transition.reward_parts.items():
            found[name] = found.get(name, 0.0) + value
    return found
