"""What a run's loggers are told when it starts, and what its journal gets when all of it is done."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from crucible_train import files, wiring
from crucible_train.config.redaction import hide_in_remark, hide_secrets, redacted
from crucible_train.config.run_config import RunConfig
from crucible_train.data.preparation import SUMMARY
from crucible_train.errors import ArtifactError, Interrupted
from crucible_train.evaluation.comparison import ALONE
from crucible_train.journal import Journal, Phase, TrackedRun, begin, read_run
from crucible_train.metrics_file import MetricsFile, last_step
from crucible_train.ports import Cell, LoggedArtifact, MetricsLogger, RunInfo, RunStatus
from crucible_train.stages.base import open_artifact
from crucible_train.stages.layout import EVALUATION, PUBLISHED, REPORT
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


@contextmanager
def ended(metrics: MetricsFile, logger: MetricsLogger) -> Iterator[None]:
    """Tell the run's own file and its loggers how the block ended; the loggers hear of it whatever the file does."""
    status: RunStatus = "failed"
    try:
        yield
        status = "done"
    except BaseException as error:
        status = status_of(error)
        raise
    finally:
        try:
            metrics.finish(status)
        except BaseException:
            status = "failed"
            raise
        finally:
            logger.finish(status)


def status_of(error: BaseException) -> RunStatus:
    """How a run ends that this stops: what is no error, such as a cancellation, asked it to."""
    return "failed" if isinstance(error, Exception) and not isinstance(error, Interrupted) else "interrupted"


def run_info(config: RunConfig, run_dir: Path, num_steps: int, first_step: int) -> RunInfo:
    """What loggers are told of a run, secrets removed."""
    given = config.tracking
    return RunInfo(
        run_dir.name,
        run_dir,
        redacted(config),
        num_steps,
        first_step,
        name=hide_in_remark(given.name or run_dir.name),
        project=hide_in_remark(given.project),
        group=hide_in_remark(given.group or ""),
        tags=tuple(hide_in_remark(tag) for tag in given.tags),
        notes=hide_in_remark(given.notes),
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
    measured = files.read_json(run_dir / EVALUATION / "summary.json") or {}
    preferred = measured.get("win_rate", {}).get("metrics")
    if preferred:
        journal.add("metrics", values=preferred, step=num_steps)
    compared = measured.get("compared", [])
    if compared:
        journal.add(
            "table", name="eval/before_after", columns=_COLUMNS, rows=[_row(one) for one in compared], step=num_steps
        )
    for picture in sorted(run_dir.glob("*.png")):
        journal.add_image(f"report/{picture.stem}", picture, num_steps)
    refs = {name: ArtifactRef.model_validate(ref) for name, ref in record.get("artifacts", {}).items()}
    problems = measured.get("before", {}).get("problems", {})
    used, made = [*_inputs(config, refs), *_problems(problems)], list(_outputs(run_dir, refs, artifacts))
    for one in (*used, *made):
        journal.add_artifact(one)
    places = {ref.sha256: hide_secrets(ref.uri) for ref in refs.values()}
    for one in (*used, *made):
        if one.digest in places:
            journal.add("link", name=f"{'input' if one.is_input else 'output'}/{one.name}", url=places[one.digest])


def described(run_dir: Path) -> TrackedRun:
    """A run as it was tracked.

    One that never was is described from its files first, as a run that has ended, unless a process works in it.
    """
    known = read_run(run_dir)
    if known is not None and (known.trackers or known.phase == "done"):
        return known
    config = files.read_json(run_dir / CONFIG) or {}
    told = config.get("tracking") or {}
    note_results(run_dir, told.get("artifacts", "adapter"))
    num_steps = max(last_step(run_dir), 0)
    info = RunInfo(run_dir.name, run_dir, config, num_steps, 0, name=told.get("name") or run_dir.name)
    info = replace(info, project=told.get("project") or info.project, group=told.get("group") or "")
    phase: Phase = "training" if files.is_held(run_dir) else "done"
    return begin(replace(info, tags=tuple(told.get("tags") or ()), notes=told.get("notes") or ""), (), phase)


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
        elif name in ("model", "judge") or name.startswith("teacher"):
            yield LoggedArtifact(name, "model", is_input=True, digest=ref.sha256, facts={"size": ref.size})


def _problems(told: Mapping[str, Any]) -> Iterator[LoggedArtifact]:
    """The problems of a run that has no rows of its own, and the data sets that they were read from."""
    if told:
        counts = {name: value for name, value in told.items() if name.startswith("num_")}
        yield LoggedArtifact(told["name"], "dataset", is_input=True, digest=told["sha256"], facts=counts)
    for one in told.get("read", ()):
        size = {"size": one["num_bytes"]}
        yield LoggedArtifact(one["name"], "dataset", is_input=True, digest=one["sha256"], facts=size)


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
