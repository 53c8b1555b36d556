"""Chosen groups of a reinforcement-learning run for people: one HTML page without script or network, and JSON.

    group   problem, tags, prompt, rewards
    └─ sample   advantage, reward and its parts, why it ended, tokens, turns
       └─ message   role, text, thinking, tool calls and their results

Both forms hold the same, and are bounded: a long text is cut and what is left out is counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crucible_train.report.conversations import visible
from crucible_train.report.template import render
from crucible_train.rl.environment import Trajectory, TrajectoryGroup
from crucible_train.types import ImagePart, Message, TextPart, ThinkingPart

SCHEMA_VERSION = 1
MAX_CHARACTERS = 8_000
MAX_MESSAGES = 100
MAX_SAMPLES = 64
MAX_GROUPS = 100


@dataclass(frozen=True, slots=True)
class LoggedGroup:
    """A group to be shown.

    Attributes:
        step: the optimizer step it was sampled for.
        group: the episodes of one problem.
        advantages_G: what each was trained with.
    """

    step: int
    group: TrajectoryGroup
    advantages_G: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that there is one advantage a trajectory."""
        if len(self.advantages_G) != len(self.group.trajectories_G):
            raise ValueError(f"{len(self.group.trajectories_G)} trajectories but {len(self.advantages_G)} advantages")


def render_logtree(groups: Sequence[LoggedGroup], title: str) -> str:
    """The page as text. Everything that comes from a model or from data is escaped."""
    return render("logtree.html.jinja", **logtree_json(groups, title), visible=_visible, strength=_strength)


def logtree_json(groups: Sequence[LoggedGroup], title: str) -> dict[str, Any]:
    """The same as JSON; a number that is not finite is null."""
    return {
        "schema_version": SCHEMA_VERSION,
        "title": _sound(title),
        "groups": [_group(group) for group in groups[:MAX_GROUPS]],
        "num_groups_left_out": max(0, len(groups) - MAX_GROUPS),
    }


def _group(logged: LoggedGroup) -> dict[str, Any]:
    group = logged.group
    num_prompt = _num_shared(group.trajectories_G)
    samples = [
        _sample(trajectory, advantage, reward, extra, num_prompt)
        for trajectory, advantage, reward, extra in zip(
            group.trajectories_G, logged.advantages_G, group.rewards_G, group.group_rewards_G, strict=True
        )
    ]
    rewards = [reward for reward in group.rewards_G if math.isfinite(reward)]
    return {
        "step": logged.step,
        "problem": _text(group.problem),
        "tags": [_sound(tag) for tag in group.tags],
        "num_failed": group.num_failed,
        "reward_mean": sum(rewards) / len(rewards) if rewards else None,
        "reward_min": min(rewards, default=None),
        "reward_max": max(rewards, default=None),
        "prompt": [_message(message) for message in _first_messages(group)[:num_prompt][:MAX_MESSAGES]],
        "samples": samples[:MAX_SAMPLES],
        "num_samples_left_out": max(0, len(samples) - MAX_SAMPLES),
    }


def _first_messages(group: TrajectoryGroup) -> tuple[Message, ...]:
    return group.trajectories_G[0].messages if group.trajectories_G else ()


def _num_shared(trajectories: Sequence[Trajectory]) -> int:
    """How many messages every transcript begins with, before anything that the policy wrote."""
    if not trajectories:
        return 0
    first, *others = (trajectory.messages for trajectory in trajectories)
    for place, message in enumerate(first[: min(map(_first_answer, trajectories))]):
        if any(other[place : place + 1] != (message,) for other in others):
            return place
    return min(map(_first_answer, trajectories))


def _first_answer(trajectory: Trajectory) -> int:
    """Where the policy first spoke: solved examples that stand before are the assistant's too."""
    answers = [place for place, message in enumerate(trajectory.messages) if message.role == "assistant"]
    num_own = min(len(trajectory.transitions), len(answers))
    return answers[-num_own] if num_own else len(trajectory.messages)


def _sample(
    trajectory: Trajectory, advantage: float, reward: float, group_reward: float, num_prompt: int
) -> dict[str, Any]:
    messages = trajectory.messages[num_prompt:]
    return {
        "advantage": _number(advantage),
        "reward": _number(reward),
        "group_reward": _number(group_reward),
        "reward_parts": _summed([turn.reward_parts for turn in trajectory.transitions]),
        "metrics": _summed([turn.metrics for turn in trajectory.transitions]),
        "stop_reason": trajectory.reason.value,
        "num_tokens": trajectory.num_sampled_tokens,
        "turns": [
            {
                "reward": _number(turn.reward),
                "num_prompt_tokens": turn.prompt.length,
                "num_tokens": len(turn.action.tokens),
                "stop_reason": turn.action.stop_reason,
                "policy_step": turn.policy_step,
            }
            for turn in trajectory.transitions
        ],
        "messages": [_message(message) for message in messages[:MAX_MESSAGES]],
        "num_messages_left_out": max(0, len(messages) - MAX_MESSAGES),
        "error": None if trajectory.error is None else _text(trajectory.error),
    }


def _message(message: Message) -> dict[str, Any]:
    parts = (TextPart(message.content),) if isinstance(message.content, str) else message.content or ()
    return {
        "role": _sound(message.role),
        "name": None if message.name is None else _sound(message.name),
        "tool_call_id": None if message.tool_call_id is None else _sound(message.tool_call_id),
        "parts": [_part(part) for part in parts],
        "tool_calls": [
            {
                "name": _sound(call.name),
                "id": None if call.id is None else _sound(call.id),
                "arguments": _text(call.arguments),
            }
            for call in message.tool_calls
        ],
    }


def _part(part: TextPart | ThinkingPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"kind": "image"}
    if isinstance(part, ThinkingPart):
        return {"kind": "thinking"} | _text(part.thinking)
    return {"kind": "text"} | _text(part.text)


def _text(text: str) -> dict[str, Any]:
    """A text of bounded length, and how many characters were left out."""
    return {"text": _sound(text[:MAX_CHARACTERS]), "num_characters_left_out": max(0, len(text) - MAX_CHARACTERS)}


def _sound(text: str) -> str:
    """The text without half characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _number(value: float) -> float | None:
    return float(value) + 0.0 if math.isfinite(value) else None


def _summed(turns: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """The sum of each name over the turns."""
    names = dict.fromkeys(name for turn in turns for name in turn)
    return {_sound(name): _number(sum(turn.get(name, 0.0) for turn in turns)) for name in names}


def _visible(text: str) -> str:
    """Control characters as something to be seen; tabs and line breaks as themselves."""
    return "\t".join(map(visible, text.split("\t")))


def _strength(advantage: float | None, samples: Sequence[Mapping[str, Any]]) -> int:
    """How strongly a sample is coloured, in percent: its advantage beside the largest of the group."""
    largest = max((abs(sample["advantage"] or 0.0) for sample in samples), default=0.0)
    return round(100 * abs(advantage or 0.0) / largest) if largest else 0
