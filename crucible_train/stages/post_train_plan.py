"""``--dry-run`` of a chain: its stages, and the rows of those that read rows, each looked at for real."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crucible_train import files, terminal
from crucible_train.config.overrides import to_yaml
from crucible_train.config.redaction import hide_secrets
from crucible_train.data.preparation import SUMMARY
from crucible_train.errors import DataError
from crucible_train.recipes.post_train import Method, PostTrainConfig, chained
from crucible_train.stages import post_train, prepare_data
from crucible_train.stages.base import Stage, peek
from crucible_train.stages.dpo import prepare_data as prepare_preferences
from crucible_train.stages.dpo.prepare_data import PreparePreferences
from crucible_train.stages.plan import bad_rows_of, made, show_bad_rows, what_stops, without_stopping
from crucible_train.stages.prepare_data import PrepareData

_ROWS: Mapping[Method, tuple[Callable[[Any], Stage[Any]], Callable[..., None]]] = {
    "sft": (PrepareData, prepare_data.report),
    "dpo": (PreparePreferences, prepare_preferences.report),
}


def show_plan(config: PostTrainConfig) -> None:
    """Print the chain. What of a method is cached is known once the one before it is done.

    Raises:
        ConfigError: as ``post_train.check``.
        DataError: rows would stop a stage; all stages are looked at first.
    """
    post_train.check(config)
    sys.stdout.write(hide_secrets(to_yaml(config)) + "\n")
    model = config.model
    for number, stage in enumerate(config.stages, 1):
        what = f"{model} beside {config.model}" if stage == "evaluate" else f"from {model}"
        terminal.field("stages" if number == 1 else "", f"{number} {stage:<9} {what}")
        model = model if stage == "evaluate" else f"the model of {number}"
    problems: list[str] = []
    methods: list[Method] = ["sft" if stage == "evaluate" else stage for stage in config.stages]
    with TemporaryDirectory(prefix="crucible-plan-") as folder:
        for method in dict.fromkeys(methods):
            if method in _ROWS:
                terminal.field("rows of", method)
                if problem := _look_at_rows(config, method, Path(folder) / method):
                    problems.append(f"{method}: {problem}")
    terminal.field("", "python -m flows.sft --dry-run, and so on, shows more of one of them")
    if problems:
        raise DataError("; ".join(problems))


def _look_at_rows(config: PostTrainConfig, method: Method, folder: Path) -> str:
    """Read the rows of a method and say what they are; what would stop it, if anything."""
    own = chained(config, method, 0, config.model)
    stage, report = _ROWS[method]
    ref = peek(stage(own), {}, config.cache_dir)
    found = made(stage(without_stopping(own)), {}, ref, folder, config.cache_dir)
    report(files.read_json(found / SUMMARY), is_cached=ref is not None)
    rows = bad_rows_of(found)
    show_bad_rows(rows)
    return what_stops(rows, own.data.on_bad_row, f"{method}.")
