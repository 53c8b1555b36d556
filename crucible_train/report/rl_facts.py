"""All that the report of a run on problems shows, gathered from its artifacts: reinforcement learning, distillation."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.config.overrides import differences, to_overrides
from crucible_train.config.redaction import hide_secrets, redacted
from crucible_train.config.run_config import RunConfig
from crucible_train.evaluation.comparison import Compared, compare_figure, compare_rewards
from crucible_train.metrics_file import read_metrics

_NUM_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class PlayedTwice:
    """A held-out problem as it was played before and after: what was asked, and the reward and the words of both."""

    problem: str
    asked: str
    before: str
    after: str
    before_reward: float | None
    after_reward: float | None


@dataclass(frozen=True, slots=True)
class RLFacts:
    """What is known of a finished run."""

    title: str
    config: Mapping[str, Any]
    changed: Mapping[str, Any]
    command: str
    compared: Sequence[Compared]
    samples: Sequence[PlayedTwice]
    metrics: Sequence[Mapping[str, Any]]
    timings: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    renderer: str
    hardware: str


def gather(
    config: RunConfig,
    inputs: Mapping[str, Path],
    hardware: str,
    title: str,
    renderer: str,
    timings: Sequence[Mapping[str, Any]],
    *,
    flow: str = "rl",
    figures: Sequence[str] = (),
) -> RLFacts:
    """Read the artifacts of a run of a flow; ``figures`` of held-out problems that are to fall are compared as well."""
    before, after = (files.read_json_lines(inputs[name] / "results.jsonl") for name in ("before", "after"))
    return RLFacts(
        title=title,
        config=redacted(config),
        changed=redacted(differences(config)),
        command=hide_secrets(f"python -m flows.{flow} " + shlex.join(to_overrides(config))).rstrip(),
        compared=[
            *compare_rewards(before, after, config.seed),
            *(row for name in figures for row in compare_figure(before, after, name, config.seed)),
        ],
        samples=[_played_twice(b, a) for b, a in zip(before, after, strict=True)][:_NUM_SAMPLES],
        metrics=read_metrics(inputs["trained"]),
        timings=timings,
        result=files.read_json(inputs["trained"] / "result.json"),
        renderer=renderer,
        hardware=hardware,
    )


def _played_twice(before: Mapping[str, Any], after: Mapping[str, Any]) -> PlayedTwice:
    first = _first_answer(before if before["reward"] is not None else after)
    messages = (before if before["reward"] is not None else after).get("messages", ())
    return PlayedTwice(
        problem=before["problem"],
        asked=_text(messages[first - 1]) if first else "",
        before=_words(before, first),
        after=_words(after, first),
        before_reward=before["reward"],
        after_reward=after["reward"],
    )


def _first_answer(played: Mapping[str, Any]) -> int:
    """Where the policy first spoke: examples that stand before are the assistant's too."""
    answers = [i for i, message in enumerate(played.get("messages", ())) if message["role"] == "assistant"]
    return answers[-played["num_turns"]] if answers and 0 < played["num_turns"] <= len(answers) else 0


def _words(played: Mapping[str, Any], first_answer: int) -> str:
    if played["reward"] is None:
        return "the episode failed"
    rest = played["messages"][first_answer:]
    if len(rest) == 1:
        return _text(rest[0])
    return "\n\n".join(f"{message['role']}: {_text(message)}" for message in rest)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
    calls = [f"[{call['function']['name']} {call['function']['arguments']}]" for call in message.get("tool_calls", ())]
    return "\n".join([*parts, *calls])
