"""What is looked at before a chain of methods is run, what ``--dry-run`` shows of it, and what it tells at its end."""

import pkgutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_train import files, terminal
from crucible_train.config.overrides import to_yaml
from crucible_train.config.redaction import hide_secrets, redacted
from crucible_train.errors import ConfigError
from crucible_train.evaluation.comparison import ALONE, compare
from crucible_train.recipes.post_train import PostTrainConfig, chained
from crucible_train.types import ArtifactRef

_CHECKS: Mapping[str, str] = {
    "sft": "crucible_train.stages.sft_preflight:check",
    "dpo": "crucible_train.stages.dpo.preflight:check",
    "distill": "crucible_train.stages.distill.preflight:check",
    "rl": "crucible_train.stages.rl.preflight:check",
}
RECORD = "record.json"


def check(config: PostTrainConfig) -> None:
    """Look at every method of the chain, as if it began from the first model.

    Raises:
        ConfigError: something is wrong; all that is wrong is reported together, each by its section.
    """
    problems: list[str] = []
    for number, stage in enumerate(config.stages, 1):
        method = "sft" if stage == "evaluate" else stage
        try:
            pkgutil.resolve_name(_CHECKS[method])(chained(config, method, number, config.model))
        except ConfigError as error:
            problems += [f"{method}.{line}" for line in error.problems if f"{method}.{line}" not in problems]
    if problems:
        raise ConfigError(problems)


def show_plan(config: PostTrainConfig) -> None:
    """Print the chain. What of a method is cached is known once the one before it is done.

    Raises:
        ConfigError: as ``check``.
    """
    check(config)
    sys.stdout.write(hide_secrets(to_yaml(config)) + "\n")
    model = config.model
    for number, stage in enumerate(config.stages, 1):
        what = f"{model} beside {config.model}" if stage == "evaluate" else f"from {model}"
        terminal.field("stages" if number == 1 else "", f"{number} {stage:<9} {what}")
        model = model if stage == "evaluate" else f"the model of {number}"
    terminal.field("", "python -m flows.sft --dry-run, and so on, shows what one of them does")


def report(before: Path, after: Path, seed: int) -> list[dict[str, Any]]:
    """Say what the chain gained on held-out rows; the same as records."""
    sides = [files.read_json_lines(folder / "results.jsonl") for folder in (before, after)]
    rows = compare(sides[0], sides[1], seed)
    for row in rows:
        change = row.difference
        interval = f", 95 % interval [{change.low:+.4g}, {change.high:+.4g}]" if row.verdict != ALONE else ""
        terminal.field(
            row.name,
            f"{row.before.value:.4g} -> {row.after.value:.4g}   change {change.value:+.4g}{interval} "
            f"over {row.num}: {row.verdict}",
        )
    return [
        {"name": row.name, "num": row.num, "before": row.before.value, "after": row.after.value, "verdict": row.verdict}
        for row in rows
    ]


def keep(
    config: PostTrainConfig, stages: Sequence[Mapping[str, Any]], evaluations: Sequence[Any], model: ArtifactRef
) -> Path:
    """Write the record of a chain, named by the model that it made; the folder it lies in."""
    name = f"{config.run_name or 'post-train'}-{model.sha256[:8]}"
    folder = Path(config.output_dir).expanduser() / name
    record = {
        "config": redacted(config),
        "stages": list(stages),
        "evaluations": list(evaluations),
        "model": model.model_dump(),
    }
    if files.read_json(folder / RECORD) != record:
        files.write_json(folder / RECORD, record)
    return folder
