"""What a run's loggers are told when it starts, and what its journal gets when all of it is done."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crucible_train import files, wiring
from crucible_train.config.redaction import hide_secrets, redacted
from crucible_train.config.run_config import RunConfig
from crucible_train.data.preparation import SUMMARY
from crucible_train.errors import ArtifactError
from crucible_train.evaluation.comparison import ALONE
from crucible_train.journal import Journal, TrackedRun, begin, read_run
from crucible_train.metrics_file import last_step
from crucible_train.ports import Cell, LoggedArtifact, MetricsLogger, RunInfo
from crucible_train.stages.base import open_artifact
from crucible_train.stages.package import EVALUATION, PUBLISHED, REPORT
from crucible_train.stages.publishing import ADAPTER_CONFIG
from crucible_train.stages.run_directory import CONFIG, RECORD
from crucible_train.types import ArtifactRef

_OWN = ("report_to", "tracking")
"""Fields that are about trackers: the run is the same without them."""
_COLUMNS = ("name", "num", "before", "after", "change", "low", "high", "verdict")
_ALIASES = ("latest",)


def start(logger: MetricsLogger, config: RunConfig, run_dir: Path, num_steps: int, first_step: int) -> None:
    """Tell the loggers of a run and of its settings."""
    logger.start(run_info(config, run_dir, num_steps, first_step))
    logger.log_hparams(settings(redacted(config)))


def run_info(config: RunConfig, run_dir: Path, num_steps: int, first_step: int) -> RunInfo:
    """What loggers are told of a run, secrets removed."""
    given = config.tracking
    return RunInfo(
        run_dir.name,
        run_dir,
        redacted(config),
        num_steps,
        first_step,
        name=hide_secrets(given.name or run_dir.name),
        project=given.project,
        group=given.group or "",
        tags=tuple(hide_secrets(tag) for tag in given.tags),
        notes=hide_secrets(given.notes),
    )


def settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Cell]:
    """A redacted configuration as ``section.field`` to value; lists and the like as JSON."""
    flat: dict[str, Cell] = {}
    for name, value in values.items():
        if prefix == "" and name in _OWN:
            continue
        if isinstance(value, Mapping) and value:
            flat |= settings(value, f"{prefix}{name}.")
        else:
            is_cell = value is None or isinstance(value, str | int | float | bool)
            flat[f"{prefix}{name}"] = value if is_cell else files.canonical_json(value)
    return flat


def note_results(run_dir: Path, artifacts: str) -> None:
    """Add to the journal what a finished run used, made and gained; what stands there already is not added again.

    Args:
        run_dir: a finished run.
        artifacts: what is uploaded, as ``tracking.artifacts`` has it; the rest is described by digest and counts.
    """
    journal = Journal(run_dir)
    record, config = files.read_json(run_dir / RECORD) or {}, files.read_json(run_dir / CONFIG) or {}
    journal.add("hparams", values=settings(config))
    num_steps = max(last_step(run_dir), 0)
    compared = (files.read_json(run_dir / EVALUATION / "summary.json") or {}).get("compared", [])
    if compared:
        journal.add(
            "table", name="eval/before_after", columns=_COLUMNS, rows=[_row(one) for one in compared], step=num_steps
        )
    for picture in sorted(run_dir.glob("*.png")):
        journal.add_image(f"report/{picture.stem}", picture, num_steps)
    refs = {name: ArtifactRef.model_validate(ref) for name, ref in record.get("artifacts", {}).items()}
    for one in (*_inputs(config, refs), *_outputs(run_dir, refs, artifacts)):
        journal.add_artifact(one)


def described(run_dir: Path) -> TrackedRun:
    """A run as it was tracked. One that never was is described from its files first, as a run that has ended."""
    known = read_run(run_dir)
    if known is not None:
        return known
    config = files.read_json(run_dir / CONFIG) or {}
    told = config.get("tracking") or {}
    note_results(run_dir, told.get("artifacts", "adapter"))
    num_steps = max(last_step(run_dir), 0)
    info = RunInfo(run_dir.name, run_dir, config, num_steps, 0, name=told.get("name") or run_dir.name)
    info = replace(info, project=told.get("project") or info.project, group=told.get("group") or "")
    return begin(replace(info, tags=tuple(told.get("tags") or ()), notes=told.get("notes") or ""), (), "done")


def _row(compared: Mapping[str, Any]) -> list[Cell]:
    change = compared["difference"]
    ends: list[Cell] = [None, None] if compared["verdict"] == ALONE else [change["low"], change["high"]]
    sides = [compared[side]["value"] for side in ("before", "after")]
    return [compared["name"], compared["num"], *sides, change["value"], *ends, compared["verdict"]]


def _inputs(config: Mapping[str, Any], refs: Mapping[str, ArtifactRef]) -> Iterator[LoggedArtifact]:
    """The models a run began from and the data it read: by digest and counts, never their content."""
    for name, ref in refs.items():
        if ref.kind == "conversations" or name == "conversations":
            source = Path(str(config.get("dataset", name))).name
            yield LoggedArtifact(source, "dataset", is_input=True, digest=ref.sha256, facts=_counts(config, ref))
        elif name == "model" or name.startswith("teacher"):
            yield LoggedArtifact(name, "model", is_input=True, digest=ref.sha256, facts={"size": ref.size})


def _counts(config: Mapping[str, Any], ref: ArtifactRef) -> dict[str, Cell]:
    """What was counted when the data was read; nothing where the store no longer has it."""
    try:
        found = files.read_json(open_artifact(wiring.blob_store(str(config["cache_dir"])), ref) / SUMMARY) or {}
    except (ArtifactError, KeyError):
        return {}
    return {name: value for name, value in found.items() if name.startswith("num_") or name == "format"}


def _outputs(run_dir: Path, refs: Mapping[str, ArtifactRef], artifacts: str) -> Iterator[LoggedArtifact]:
    is_adapter = (run_dir / PUBLISHED / ADAPTER_CONFIG).is_file()
    is_sent = artifacts == "all" or (artifacts == "adapter" and is_adapter)
    if "trained" in refs:
        yield LoggedArtifact(
            "adapter" if is_adapter else "model",
            "model",
            is_input=False,
            digest=refs["trained"].sha256,
            path=run_dir / PUBLISHED if is_sent else None,
            aliases=_ALIASES,
            facts={"size": refs["trained"].size},
        )
    report = run_dir / REPORT
    if report.is_file():
        path = None if artifacts == "none" else report
        digest = files.sha256_file(report)
        yield LoggedArtifact("report", "report", is_input=False, digest=digest, path=path, aliases=_ALIASES)
    answers = run_dir / EVALUATION / "results.jsonl"
    if artifacts == "all" and answers.is_file():
        digest = files.sha256_file(answers)
        yield LoggedArtifact("evaluation", "file", is_input=False, digest=digest, path=answers, aliases=_ALIASES)
