"""Groups of trajectories as JSON, and back: what a checkpoint keeps of rollouts that are yet to be trained on.

Numbers come back to the bit: Python writes floats with as many digits as tell them apart.
"""

from collections.abc import Mapping
from typing import Any

from crucible_train.errors import CheckpointError
from crucible_train.rl.environment import StopReason, Trajectory, TrajectoryGroup, Transition
from crucible_train.types import Message, ModelInput, TokensWithLogprobs


def group_to_json(group: TrajectoryGroup) -> dict[str, Any]:
    """As a JSON object."""
    return {
        "problem": group.problem,
        "trajectories": [_trajectory_to_json(trajectory) for trajectory in group.trajectories_G],
        "group_rewards": list(group.group_rewards_G),
        "tags": list(group.tags),
        "num_failed": group.num_failed,
        "errors": list(group.errors),
    }


def group_from_json(value: Mapping[str, Any]) -> TrajectoryGroup:
    """From ``group_to_json``.

    Raises:
        CheckpointError: it is not such an object.
    """
    try:
        return TrajectoryGroup(
            value["problem"],
            tuple(_trajectory_from_json(trajectory) for trajectory in value["trajectories"]),
            tuple(value["group_rewards"]),
            tuple(value["tags"]),
            value["num_failed"],
            tuple(value["errors"]),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's rollouts cannot be read: {error!r}") from error


def _trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "transitions": [
            {
                "prompt": transition.prompt.to_ints(),
                "tokens": list(transition.action.tokens),
                "logprobs": None if transition.action.logprobs is None else list(transition.action.logprobs),
                "stop_reason": transition.action.stop_reason,
                "reward": transition.reward,
                "policy_step": transition.policy_step,
                "reward_parts": dict(transition.reward_parts),
                "metrics": dict(transition.metrics),
            }
            for transition in trajectory.transitions
        ],
        "reason": str(trajectory.reason),
        "messages": [message.to_dict() for message in trajectory.messages],
        "error": trajectory.error,
    }


def _trajectory_from_json(value: Mapping[str, Any]) -> Trajectory:
    transitions = tuple(
        Transition(
            prompt=ModelInput.from_ints(one["prompt"]),
            action=TokensWithLogprobs(
                tuple(one["tokens"]),
                None if one["logprobs"] is None else tuple(one["logprobs"]),
                one["stop_reason"],
            ),
            reward=one["reward"],
            policy_step=one["policy_step"],
            reward_parts=one["reward_parts"],
            metrics=one["metrics"],
        )
        for one in value["transitions"]
    )
    messages = tuple(Message.of(message, index) for index, message in enumerate(value["messages"]))
    return Trajectory(transitions, StopReason(value["reason"]), messages, value["error"])
