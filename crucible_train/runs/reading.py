"""A run directory as it is found: whole, unfinished or torn.

Nothing here raises for what a file holds: a killed run leaves files out, and a full disk leaves half of one.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from crucible_train import files
from crucible_train.config.base import Section
from crucible_train.config.fields import REQUIRED, tree_of
from crucible_train.config.suggestions import nearest
from crucible_train.errors import ConfigError
from crucible_train.journal import RUN_FILE
from crucible_train.metrics_file import METRICS_FILE, TIMINGS_FILE, read_metrics
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.recipes.post_train import PostTrainConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages.layout import EVALUATION
from crucible_train.stages.run_directory import CONFIG, RECORD, flat

TAGS = "tags.json"
TRACKING = "tracking"
CHECKPOINTS = ("checkpoints", "checkpoints.jsonl")
RECIPES: Mapping[str, type[Section]] = {
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "rl": RLConfig,
    "distill": DistillConfig,
    "post_train": PostTrainConfig,
}
UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and after training; a side that was not measured is None."""

    name: str
    before: float | None
    after: float | None
    lower_is_better: bool | None
    verdict: str = ""


@dataclass(frozen=True)
class Run:
    """One run directory. Its files are read when they are asked for, each once."""

    path: Path

    @property
    def run_id(self) -> str:
        """The name of its folder."""
        return self.path.name

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """What was recorded at its end; empty where it has not ended, or the record is torn."""
        return _mapping(files.read_json(self.path / RECORD))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Its configuration with sections, secrets hidden; empty where neither file that holds it is readable."""
        return _mapping(files.read_json(self.path / CONFIG)) or _mapping(self.record.get("config"))

    @cached_property
    def method(self) -> str:
        """The recipe whose fields these are; ``?`` where there is none."""
        known = {name: set(recipe.model_fields) for name, recipe in RECIPES.items()}
        fitting = [name for name, fields in known.items() if self.config and set(self.config) <= fields]
        return min(fitting, key=lambda name: len(known[name]), default=UNKNOWN)

    @cached_property
    def metrics(self) -> Sequence[Mapping[str, Any]]:
        """The records of its steps, oldest first."""
        return read_metrics(self.path)

    @cached_property
    def timings(self) -> Sequence[Mapping[str, Any]]:
        """What is not the same in a run of the same configuration: speed, load."""
        return read_metrics(self.path, TIMINGS_FILE)

    @cached_property
    def changes(self) -> Sequence[Change]:
        """The held-out figures before and after; the metric that picks its best model while it is unfinished."""
        found = [_change(row) for row in _rows(files.read_json(self.path / EVALUATION / "summary.json"), "compared")]
        if found or self.is_done:
            return found
        name = str(_mapping(self.config.get("eval")).get("metric_for_best_model"))
        values = [record[name] for record in self.metrics if is_number(record.get(name))]
        short = name.removeprefix("eval/")
        return [Change(short, values[0], values[-1] if len(values) > 1 else None, None)] if values else []

    @property
    def is_done(self) -> bool:
        """Whether its record stands."""
        return bool(self.record)

    @property
    def status(self) -> str:
        """In a word."""
        return "done" if self.is_done else "unfinished"

    @property
    def stages(self) -> Sequence[Mapping[str, Any]]:
        """The stages of a chain; none of a run of one method."""
        found = self.record.get("stages")
        return [stage for stage in found if isinstance(stage, Mapping)] if isinstance(found, list) else []

    @property
    def num_steps(self) -> int | None:
        """The last step that its numbers tell of."""
        return self.metrics[-1]["step"] if self.metrics else None

    @property
    def model(self) -> str:
        """The base model as it was configured."""
        return str(self.config.get("model", UNKNOWN))

    @property
    def data(self) -> str:
        """What it is trained on: a data set, or an environment; of a chain its stages."""
        if self.method == "post_train":
            return " > ".join(map(str, self.config.get("stages", ())))
        return str(self.config.get("dataset") or _mapping(self.config.get("env")).get("name", UNKNOWN))

    @property
    def finished_at(self) -> str:
        """When it was finished, UTC, to the minute; empty where it is not."""
        try:
            moment = datetime.datetime.fromisoformat(str(self.record.get("finished_at")))
        except ValueError:
            return ""
        return moment.strftime("%Y-%m-%d %H:%M")

    @property
    def last_written(self) -> float:
        """When its numbers or its configuration were last written, in seconds since 1970."""
        found = [self.path / name for name in (METRICS_FILE, CONFIG, RECORD) if (self.path / name).is_file()]
        return max((path.stat().st_mtime for path in found), default=0.0)

    @cached_property
    def tags(self) -> list[str]:
        """Its tags in order of the alphabet."""
        found = files.read_json(self.path / TAGS)
        return sorted({tag for tag in found if isinstance(tag, str)}) if isinstance(found, list) else []

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Every field of its configuration by dotted path."""
        if self.method == UNKNOWN:
            return flat(self.config)
        values = {path: _at(self.config, path) for path in tree_of(RECIPES[self.method]).leaves}
        return {path: value for path, value in values.items() if value is not _ABSENT}

    @cached_property
    def changed_settings(self) -> Mapping[str, Any]:
        """The fields whose value is not the default of today; all of them where the method is unknown."""
        if self.method == UNKNOWN:
            return self.settings
        leaves = tree_of(RECIPES[self.method]).leaves
        return {
            path: value
            for path, value in self.settings.items()
            if leaves[path].default is REQUIRED or value != to_jsonable_python(leaves[path].default)
        }

    @cached_property
    def final_metrics(self) -> Mapping[str, float]:
        """The last value of every metric, and the figures of its record, which hold where both have one."""
        last = {name: value for record in self.metrics for name, value in record.items() if name != "step"}
        last |= _mapping(self.record.get("final_metrics"))
        return {name: last[name] for name in sorted(last) if is_number(last[name])}

    @cached_property
    def trackers(self) -> Mapping[str, Mapping[str, Any]]:
        """How far each tracker's copy of the run has come, by the tracker's name."""
        found = {path.stem: _mapping(files.read_json(path)) for path in sorted((self.path / TRACKING).glob("*.json"))}
        return {name: cursor for name, cursor in found.items() if "last_step" in cursor}


def is_run(path: Path) -> bool:
    """Whether a folder is a run's: a recipe's configuration, and something that was done with it.

    Where the configuration is none that is known, the run's record or its trackers' file must say that it is a run.
    """
    has_work = any((path / name).exists() for name in (METRICS_FILE, RECORD, *CHECKPOINTS))
    if path.name.startswith(files.TEMPORARY_MARK) or not has_work or not (path / CONFIG).is_file():
        return False
    run = Run(path)
    return run.method != UNKNOWN or "run_id" in run.record or (path / TRACKING / RUN_FILE).is_file()


def find_runs(folder: Path) -> list[Run]:
    """The runs that lie in a folder, the newest last.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; name the one that runs lie in (output_dir)")
    return sorted((Run(path) for path in folder.iterdir() if is_run(path)), key=lambda run: run.last_written)


def find_run(name: str, folder: Path) -> Run:
    """The run of an id in ``folder``, or of a path.

    Raises:
        ConfigError: there is none.
    """
    inside, path = folder / name, Path(name).expanduser()
    found = inside if inside.is_dir() else path
    if is_run(found):
        return Run(found if found.name not in ("", "..") else found.resolve())
    if found.is_dir():
        raise ConfigError(
            f"{found}: it is no run: a run has the {CONFIG} of a recipe, and {METRICS_FILE}, {RECORD} or checkpoints"
        )
    known = [run.run_id for run in find_runs(folder)] if folder.is_dir() else []
    meant = nearest(name, known) or "`list` says what there is"
    raise ConfigError(f"{name}: there is no such run in {folder}; {meant}")


def is_number(value: Any) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve(run: Run, name: str) -> list[tuple[int, float]]:
    """The steps at which a metric was measured, and its values."""
    records = [record for record in (*run.metrics, *run.timings) if is_number(record.get(name))]
    return [(int(record["step"]), float(record[name])) for record in records]


_ABSENT = object()


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return _ABSENT
        found = found[name]
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(value: Any, name: str) -> list[Mapping[str, Any]]:
    rows = _mapping(value).get(name)
    return [row for row in rows if isinstance(row, Mapping) and "name" in row] if isinstance(rows, list) else []


def _change(row: Mapping[str, Any]) -> Change:
    before, after = (_mapping(row.get(side)).get("value") for side in ("before", "after"))
    lower = row.get("lower_is_better")
    return Change(
        str(row["name"]),
        before if is_number(before) else None,
        after if is_number(after) else None,
        lower if isinstance(lower, bool) else None,
        str(row.get("verdict", "")),
    )
