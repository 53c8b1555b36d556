"""A run that stands in the file of another tracker's client, as a run directory from which it can be sent anywhere."""

import json
from pathlib import Path

from crucible_train import files, journal, terminal
from crucible_train.config.redaction import hide_in_remark, redacted
from crucible_train.errors import ConfigError
from crucible_train.journal import Journal
from crucible_train.metrics_file import METRICS_FILE, last_step
from crucible_train.ports import RecordedRun, RunInfo


def as_run_directory(found: RecordedRun, run_dir: Path) -> None:
    """Write the metrics and the settings of a run; the same run over itself changes nothing.

    Raises:
        ConfigError: another run is there.
    """
    lines = "".join(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n" for step, metrics in found.steps)
    path = run_dir / METRICS_FILE
    if path.is_file() and path.read_text(encoding="utf-8") != lines:
        raise ConfigError(f"{run_dir}: another run is there; give --into a folder of its own")
    files.write_text(path, lines)
    settings = redacted(found.settings)
    name = hide_in_remark(str(settings.get("name") or found.run_id))
    tags = tuple(map(hide_in_remark, found.tags))
    project = hide_in_remark(found.project.rpartition("/")[2])
    info = RunInfo(
        run_dir.name, run_dir, settings, max(last_step(run_dir), 0), 0, name=name, project=project, tags=tags
    )
    Journal(run_dir).add("hparams", values=settings)
    journal.begin(info, (), "done")
    left_out = f"; {found.num_left_out} numbers that are not finite are left out" if found.num_left_out else ""
    terminal.field("run", f"{run_dir}: {len(found.steps)} steps and {len(settings)} settings{left_out}")
