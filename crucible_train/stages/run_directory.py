"""The run directory: named by what is run, filled once, left alone when the same run is asked for again."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import crucible_train
from crucible_train import files, terminal
from crucible_train.config.redaction import hide_secrets, redacted
from crucible_train.config.run_config import RunConfig
from crucible_train.config.writing import as_text
from crucible_train.evaluation.comparison import ALONE
from crucible_train.report.win_rate import in_a_line
from crucible_train.stages.layout import EVALUATION, PUBLISHED, REPORT
from crucible_train.types import ArtifactRef, Hardware

CONFIG = "config.json"
RECORD = "record.json"
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy", "prefect")


def run_id(config: RunConfig, method: str, subject: str, key: str) -> str:
    """A readable name and the first digits of the training stage's key: the same run is found, not repeated.

    Where no name is given it is made of the method, the model and what it is trained on.
    """
    name = config.run_name or f"{method}-{_named_by(config.model).stem}-{_named_by(subject).name.split('.')[0]}"
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or method
    return f"{safe}-{key[:8]}"


def _named_by(source: str) -> Path:
    """A path, or the one of a URL: what comes after it may be a key."""
    return Path(hide_secrets(re.split("[?#]", source)[0]) if "://" in source else source)


def place(config: RunConfig, run_id: str) -> Path:
    """The folder of a run."""
    return Path(config.output_dir).expanduser() / run_id


def begin(run_dir: Path, config: RunConfig) -> None:
    """Write the configuration of a run, unless it stands there already."""
    _write_if_changed(run_dir / CONFIG, redacted(config))


def finish(
    run_dir: Path,
    package: Path,
    config: RunConfig,
    refs: Mapping[str, ArtifactRef],
    hardware: Hardware,
    seconds: float,
) -> bool:
    """Put the package into the run directory and write the record; whether anything had to be written.

    Files that are already what they should be are left as they are.
    """
    changed = False
    for source in sorted(path for path in package.rglob("*") if path.is_file()):
        target = run_dir / source.relative_to(package)
        if not target.is_file() or files.sha256_file(target) != files.sha256_file(source):
            files.copy_file(source, target)
            changed = True
    record = files.read_json(run_dir / RECORD)
    digests = {name: ref.model_dump() for name, ref in refs.items()}
    if not isinstance(record, dict) or record.get("artifacts") != digests:
        _say_what_is_replaced(record, config)
        files.write_json(run_dir / RECORD, _record(run_dir, config, digests, hardware, seconds))
        changed = True
    return changed


def report(run_dir: Path, package: Path, *, is_new: bool) -> None:
    """Say what the run gained and where everything lies."""
    found = files.read_json(package / EVALUATION / "summary.json")
    tell_changes(found["compared"])
    if found.get("win_rate", {}).get("num"):
        terminal.field("win rate", in_a_line(found["win_rate"]))
    if not is_new:
        terminal.field("done", "this run was finished before; nothing was changed")
    terminal.field("model", str(run_dir / PUBLISHED))
    terminal.field("report", str(run_dir / REPORT))


def tell_changes(compared: Sequence[Mapping[str, Any]]) -> None:
    """Say of each figure what it was and what it became, as ``Compared.to_json`` has them."""
    for row in compared:
        before, after, change = row["before"], row["after"], row["difference"]
        interval = f", 95 % interval [{change['low']:+.4g}, {change['high']:+.4g}]" if row["verdict"] != ALONE else ""
        terminal.field(
            row["name"],
            f"{before['value']:.4g} -> {after['value']:.4g}   change {change['value']:+.4g}{interval} "
            f"over {row['num']}: {row['verdict']}",
        )


def _say_what_is_replaced(record: Any, config: RunConfig) -> None:
    """Runs that differ only in what training does not read, such as how answers are written, share a folder."""
    before = record.get("config") if isinstance(record, dict) else None
    if isinstance(before, dict):
        old, new = flat(before), flat(redacted(config))
        changed = [f"{name}={as_text(old[name], Any)}" for name in new if name in old and old[name] != new[name]]
        if changed:
            terminal.field(
                "replaced",
                f"the report of the same training with {' '.join(changed)}; run it so again to have that one back",
            )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as ``section.field`` to value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _record(
    run_dir: Path, config: RunConfig, artifacts: Mapping[str, Any], hardware: Hardware, seconds: float
) -> dict[str, Any]:
    summary = files.read_json(run_dir / "eval" / "summary.json") or {}
    return {
        "run_id": run_dir.name,
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wall_time_s": round(seconds, 1),
        "seed": config.seed,
        "config": redacted(config),
        "artifacts": artifacts,
        "code": {"crucible_train": crucible_train.__version__, "git": _git_state()},
        "packages": {library: version(library) for library in _LIBRARIES},
        "hardware": {
            "description": hardware.description,
            "machine": platform.machine(),
            "num_cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "final_metrics": {
            name: value
            for part in ("after", "win_rate")
            for name, value in summary.get(part, {}).get("metrics", {}).items()
        },
    }


def _git_state() -> str | None:
    """The commit this code is at, marked where it has been changed; None outside a checkout."""
    root = Path(crucible_train.__file__).parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _write_if_changed(path: Path, value: Any) -> None:
    if files.read_json(path) != value:
        files.write_json(path, value)
