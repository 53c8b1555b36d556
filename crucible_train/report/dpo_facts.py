"""All that the report of learning from preferences shows, gathered from a run's artifacts."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.config.overrides import differences, to_overrides
from crucible_train.config.redaction import hide_secrets, redacted
from crucible_train.data.preference_preparation import PAIRS
from crucible_train.data.preference_tables import Preferences, RenderedPreferences
from crucible_train.data.preparation import HELD_OUT
from crucible_train.data.rendering import VALIDATION
from crucible_train.data.rows import merge_counts
from crucible_train.evaluation.comparison import Compared, compare_preferences
from crucible_train.metrics_file import read_metrics
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.report.win_rate import WinRateFacts, gather_win_rate
from crucible_train.types import Message

_NUM_SAMPLES = 6


@dataclass(frozen=True, slots=True)
class ComparedTwice:
    """A held-out preference, and its margin before and after; None for a completion that there is not."""

    prompt: str
    chosen: str | None
    rejected: str | None
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class DPOFacts:
    """What is known of a finished run; ``win_rate`` is None where none was asked for."""

    title: str
    config: Mapping[str, Any]
    changed: Mapping[str, Any]
    command: str
    compared: Sequence[Compared]
    win_rate: WinRateFacts | None
    samples: Sequence[ComparedTwice]
    metrics: Sequence[Mapping[str, Any]]
    timings: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    data: Mapping[str, Any]
    rendered: Mapping[str, Any]
    bad_rows: Sequence[Mapping[str, Any]]
    num_bad_rows: Mapping[str, int]
    hardware: str


def gather(
    config: DPOConfig, inputs: Mapping[str, Path], hardware: str, title: str, timings: Sequence[Mapping[str, Any]]
) -> DPOFacts:
    """Read the artifacts of a run."""
    before, after = (files.read_json_lines(inputs[name] / "results.jsonl") for name in ("before", "after"))
    data, rendered = (files.read_json(inputs[name] / "summary.json") for name in ("conversations", "rendered"))
    return DPOFacts(
        title=title,
        config=redacted(config),
        changed=redacted(differences(config)),
        command=hide_secrets("python -m flows.dpo " + shlex.join(to_overrides(config))).rstrip(),
        compared=compare_preferences(before, after, config.seed),
        win_rate=gather_win_rate(inputs.get("win_rate")),
        samples=_samples(config, inputs, before, after),
        metrics=read_metrics(inputs["trained"]),
        timings=timings,
        result=files.read_json(inputs["trained"] / "result.json"),
        data=data,
        rendered=rendered,
        bad_rows=[
            *files.read_json_lines(inputs["conversations"] / "quarantine.jsonl"),
            *files.read_json_lines(inputs["rendered"] / "quarantine.jsonl"),
        ],
        num_bad_rows=merge_counts([data["bad_rows"], rendered["bad_rows"]]),
        hardware=hardware,
    )


def _samples(
    config: DPOConfig,
    inputs: Mapping[str, Path],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
) -> list[ComparedTwice]:
    source = Preferences(inputs["conversations"] / (HELD_OUT if isinstance(config.data.eval_split, str) else PAIRS))
    rendered, found = RenderedPreferences(inputs["rendered"] / VALIDATION), []
    for left, right in list(zip(before, after, strict=True))[:_NUM_SAMPLES]:
        one = source[rendered[left["row"]].row]
        words = (_words(one.prompt), _words(one.chosen), _words(one.rejected))
        found.append(ComparedTwice(words[0] or "", words[1], words[2], left["margin"], right["margin"]))
    return found


def _words(messages: Sequence[Message] | None) -> str | None:
    """What is said; who says it, too, where there is more than one message."""
    if messages is None:
        return None
    if len(messages) == 1:
        return messages[0].text
    return "\n\n".join(f"{message.role}: {message.text}" for message in messages)
