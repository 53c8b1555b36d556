"""All that a report shows, gathered from a run's artifacts; the page and the summary only lay it out."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.config.overrides import differences, to_overrides
from crucible_train.config.redaction import hide_secrets, redacted
from crucible_train.data.comparisons import COMPARISON
from crucible_train.data.rows import merge_counts
from crucible_train.evaluation.comparison import Compared, compare, compare_ended
from crucible_train.metrics_file import read_metrics
from crucible_train.recipes.sft import SFTConfig


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out prompt, the reference and both answers with their scores."""

    prompt: str
    reference: str
    before: str
    after: str
    before_scores: Mapping[str, float]
    after_scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of a finished run; ``ended`` says, of the answers, how many the model ended itself."""

    title: str
    config: Mapping[str, Any]
    changed: Mapping[str, Any]
    command: str
    compared: Sequence[Compared]
    ended: Sequence[Compared]
    samples: Sequence[Sample]
    metrics: Sequence[Mapping[str, Any]]
    timings: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    data: Mapping[str, Any]
    rendered: Mapping[str, Any]
    bad_rows: Sequence[Mapping[str, Any]]
    num_bad_rows: Mapping[str, int]
    hardware: str

    @property
    def is_judge(self) -> bool:
        """Whether comparisons were learnt, so that the model says which of two answers is better."""
        return bool(self.data["format"] == COMPARISON)


def gather(
    config: SFTConfig, inputs: Mapping[str, Path], hardware: str, title: str, timings: Sequence[Mapping[str, Any]]
) -> RunFacts:
    """Read the artifacts of a run."""
    before, after = (files.read_json_lines(inputs[name] / "results.jsonl") for name in ("before", "after"))
    data, rendered = (files.read_json(inputs[name] / "summary.json") for name in ("conversations", "rendered"))
    return RunFacts(
        title=title,
        config=redacted(config),
        changed=redacted(differences(config)),
        command=hide_secrets("python -m flows.sft " + shlex.join(to_overrides(config))).rstrip(),
        compared=compare(before, after, config.seed),
        ended=compare_ended(before, after),
        samples=_samples(before, after),
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


def _samples(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Sample]:
    left, right = ([row for row in side if row["kind"] == "answer"] for side in (before, after))
    return [
        Sample(b["prompt"], b["reference"], b["text"], a["text"], b["scores"], a["scores"])
        for b, a in zip(left, right, strict=True)
    ]
