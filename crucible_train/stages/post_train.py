"""What is looked at before a chain of methods is run, and what it tells at its end."""

import datetime
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.config.redaction import redacted
from crucible_train.errors import ConfigError
from crucible_train.evaluation.comparison import compare
from crucible_train.recipes.post_train import SHARED, PostTrainConfig, chained
from crucible_train.stages import preflight
from crucible_train.stages.layout import EVALUATION, RESULTS, SUMMARY
from crucible_train.stages.run_directory import CONFIG, RECORD, tell_changes
from crucible_train.types import ArtifactRef

_CHECKS: Mapping[str, str] = {
    "sft": "crucible_train.stages.sft_preflight:check",
    "dpo": "crucible_train.stages.dpo.preflight:check",
    "distill": "crucible_train.stages.distill.preflight:check",
    "rl": "crucible_train.stages.rl.preflight:check",
}


def check(config: PostTrainConfig) -> None:
    """Look at every method of the chain, as if it began from the first model.

    Raises:
        ConfigError: something is wrong; all that is wrong is reported together, each by its section.
    """
    problems: list[str] = []
    notes: list[str] = []
    for number, stage in enumerate(config.stages, 1):
        method = "sft" if stage == "evaluate" else stage
        noted: list[str] = []
        try:
            pkgutil.resolve_name(_CHECKS[method])(chained(config, method, number, config.model), noted.append)
        except ConfigError as error:
            problems += [_of_section(method, problem) for problem in error.problems]
        if stage != "evaluate":  # which asks nobody
            notes += [_of_section(method, note) for note in noted]
    for note in dict.fromkeys(notes):
        preflight.tell(note)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _of_section(method: str, line: str) -> str:
    """A line about a field, with the section that holds the field in a chain."""
    return line if line.partition(":")[0].partition(".")[0] in SHARED else f"{method}.{line}"


def report(before: Path, after: Path, seed: int) -> list[dict[str, Any]]:
    """Say what the chain gained on held-out rows; the same as records."""
    sides = [files.read_json_lines(folder / RESULTS) for folder in (before, after)]
    compared = [row.to_json() for row in compare(sides[0], sides[1], seed)]
    tell_changes(compared)
    return compared


def keep(
    config: PostTrainConfig, stages: Sequence[Mapping[str, Any]], evaluations: Sequence[Any], model: ArtifactRef
) -> Path:
    """Write what a run leaves, named by the model that the chain made; the folder it lies in.

    The last evaluation is that of the chain. A chain that was found, not run, leaves its folder as it is.
    """
    name = f"{config.run_name or 'post-train'}-{model.sha256[:8]}"
    folder = Path(config.output_dir).expanduser() / name
    made = {
        "run_id": name,
        "config": redacted(config),
        "stages": list(stages),
        "evaluations": list(evaluations),
        "artifacts": {"model": model.model_dump()},
    }
    standing = files.read_json(folder / RECORD)
    if isinstance(standing, dict) and made.items() <= standing.items():
        return folder
    files.write_json(folder / CONFIG, made["config"])
    if evaluations:
        files.write_json(folder / EVALUATION / SUMMARY, {"compared": evaluations[-1]})
    finished_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    files.write_json(folder / RECORD, made | {"finished_at": finished_at})
    return folder
