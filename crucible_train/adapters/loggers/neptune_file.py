"""Runs in files of Neptune's client, which no service takes any more."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["NEPTUNE_LOG_FAILURE_ACTION"] = "raise"  # its default drops what it cannot write; read when imported

from neptune_scale import Run

from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.adapters.loggers.neptune_reading import FILE, holds_anything, read_neptune_file
from crucible_train.adapters.loggers.waiting_steps import WaitingSteps
from crucible_train.ports import Cell, Opened, RunInfo, RunStatus

_NOT_IN_NAMES = re.compile(r"[^\w.-]")


class NeptuneLogger(QuietLogger):
    """Metrics and settings in ``neptune/<tracker_id>/…/run_operations.sqlite3`` beside the run directory.

    Neptune's hosted service ended on 2026-03-05: the file cannot be synced anywhere, whatever the client says when it
    closes. ``read_neptune_file`` reads it. Each start that has something to write makes a file of its own, which goes
    on after the newest step of the earlier ones.
    """

    def __init__(self) -> None:
        """Nothing is open."""
        self._info: RunInfo | None = None
        self._run: Any = None
        self._steps = WaitingSteps()

    def start(self, run: RunInfo) -> Opened:
        """Find the newest step in the files of this run.

        One that cannot be read is told of and passed over: what it alone held is written again.
        """
        self._info = run
        earlier: list[Path] = []
        newest = -1
        for file in sorted(self._folder.glob(f"*/{FILE}")):
            try:
                if holds_anything(file):
                    newest = max([newest, *(step for step, _ in read_neptune_file(file))])
                    earlier.append(file)
            except ValueError as error:
                sys.stderr.write(f"{error}; it is passed over\n")
        self._steps = WaitingSteps(newest)
        return Opened(None, self._steps.last_step, is_new=not earlier)

    def log_hparams(self, values: Mapping[str, Cell]) -> None:
        """Record settings."""
        self._opened().log_configs({name: value for name, value in values.items() if value is not None})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        self._steps.add(metrics, step)

    def flush(self) -> None:
        """Write what waits, a transaction a step."""
        for step, metrics in self._steps.waiting():
            self._opened().log_metrics(metrics, step=step)
            self._steps.sent(step)

    def finish(self, status: RunStatus) -> None:
        """Write what waits and close the file."""
        if self._info is None:
            return
        self.flush()
        if self._run is not None:
            self._run.close()
        self._run = self._info = None

    @property
    def _folder(self) -> Path:
        assert self._info is not None, "start comes first"
        return self._info.run_dir.absolute().parent / "neptune" / self._id

    @property
    def _id(self) -> str:
        assert self._info is not None, "start comes first"
        return _NOT_IN_NAMES.sub("-", self._info.tracker_id or self._info.run_id)

    def _opened(self) -> Any:
        if self._run is not None:
            return self._run
        info = self._info
        assert info is not None, "start comes first"
        self._run = Run(
            run_id=self._id,
            project=f"crucible-train/{_NOT_IN_NAMES.sub('-', info.project)}",
            mode="offline",
            log_directory=self._folder,
            enable_console_log_capture=False,
            source_tracking_config=None,
        )
        if info.tags:
            self._run.add_tags(list(info.tags))
        self._run.log_configs({"name": info.name or info.run_id, "group": info.group, "notes": info.notes})
        return self._run
