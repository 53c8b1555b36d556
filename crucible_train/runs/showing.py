"""What ``list`` and ``show`` print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_train import terminal
from crucible_train.config.writing import as_text
from crucible_train.report.conversations import visible
from crucible_train.report.naming import shown_model
from crucible_train.runs.reading import Change, Run
from crucible_train.runs.table import figure, heading, show_table
from crucible_train.stages.layout import PUBLISHED, REPORT

_HEADINGS = ("run", "method", "model", "data", "status", "steps", "before -> after", "finished (UTC)", "tags")


def show_list(runs: Sequence[Run], folder: Path) -> None:
    """A line for every run."""
    if not runs:
        terminal.say(f"{folder}: no runs lie there")
        return
    rows = [
        (
            run.run_id,
            run.method,
            Path(shown_model(run.model)).name,
            Path(run.data).name,
            run.status,
            "-" if run.num_steps is None else str(run.num_steps),
            _in_short(run.changes[0]) if run.changes else "-",
            run.finished_at or "-",
            " ".join(run.tags),
        )
        for run in runs
    ]
    show_table(_HEADINGS, rows)


def show_run(run: Run) -> None:
    """All that is known of one run."""
    for name, text in _facts(run).items():
        terminal.field(name, visible(text))
    heading("Configuration that differs from the default")
    _settings(run.changed_settings)
    if run.changes:
        heading("Before and after, on held-out data")
        rows = [(row.name, figure(row.before), figure(row.after), row.verdict) for row in run.changes]
        show_table(("figure", "before", "after", ""), rows, "  ")
    heading("Last value of every metric")
    if run.final_metrics:
        show_table(("metric", "value"), [(name, figure(value)) for name, value in run.final_metrics.items()], "  ")
    else:
        terminal.say("  none was written")
    _stages(run)
    _artifacts(run)
    _trackers(run)


def _facts(run: Run) -> dict[str, str]:
    seconds, hardware = run.record.get("wall_time_s"), run.record.get("hardware")
    places = {"model": run.path / PUBLISHED, "report": run.path / REPORT}
    facts = {
        "run": run.run_id,
        "folder": str(run.path),
        "method": run.method,
        "trains": f"{shown_model(run.model)} {'by' if run.stages else 'on'} {run.data}",
        "status": f"{run.status} {run.finished_at and f'at {run.finished_at} UTC'}".rstrip(),
        "steps": "none" if run.num_steps is None else str(run.num_steps),
        "took": f"{seconds} s" if seconds is not None else "",
        "hardware": str(hardware.get("description", "")) if isinstance(hardware, Mapping) else "",
        "tags": " ".join(run.tags),
    } | {name: str(path) for name, path in places.items() if path.exists()}
    return {name: text for name, text in facts.items() if text}


def _settings(values: Mapping[str, Any]) -> None:
    if not values:
        terminal.say("  nothing")
        return
    show_table(("field", "value"), [(name, as_text(value, Any)) for name, value in values.items()], "  ")


def _stages(run: Run) -> None:
    if not run.stages:
        return
    heading("Stages, each a run of its own")
    show_table(
        ("stage", "folder"), [(_text(stage.get("stage")), _text(stage.get("run_dir"))) for stage in run.stages], "  "
    )


def _artifacts(run: Run) -> None:
    found = run.record.get("artifacts")
    if not isinstance(found, Mapping):
        return
    heading("Artifacts")
    rows = [
        (name, f"{size:,}" if isinstance(size, int) else "-", str(ref.get("sha256", ""))[:12], str(ref.get("uri", "")))
        for name, ref in found.items()
        if isinstance(ref, Mapping)
        for size in (ref.get("size"),)
    ]
    show_table(("artifact", "bytes", "SHA-256", "where"), rows, "  ")


def _trackers(run: Run) -> None:
    if not run.trackers:
        return
    heading("Trackers")
    rows = [
        (name, *(_text(cursor.get(part)) for part in ("state", "last_step", "url", "problem")))
        for name, cursor in run.trackers.items()
    ]
    show_table(("tracker", "state", "sent to step", "where", "problem"), rows, "  ")


def _in_short(change: Change) -> str:
    return f"{change.name} {figure(change.before)} -> {figure(change.after)}"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
