"""Runs in Trackio's database on this machine."""

import os
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from crucible_train import files
from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.adapters.loggers.waiting_steps import Step, WaitingSteps
from crucible_train.ports import Cell, Opened, RunInfo, RunStatus

_NOT_IN_PROJECTS = re.compile(r"[^\w-]")


class TrackioLogger(QuietLogger):
    """One Trackio run per ``tracker_id``, in ``TRACKIO_DIR``, else the folder ``trackio`` beside the run directory.

    Whatever waits is written in one transaction by ``flush``; ``start`` reads the newest step and the settings back.
    Settings are written with a step, so a run of none has none. Nothing reaches the network. The library reads its
    folder when it is first imported: a process serves one folder.
    """

    def __init__(self) -> None:
        """Nothing is open."""
        self._info: RunInfo | None = None
        self._storage: Any = None
        self._config: dict[str, Any] = {}
        self._is_config_new = False
        self._steps = WaitingSteps()

    def start(self, run: RunInfo) -> Opened:
        """Find the run in the database."""
        os.environ.setdefault("TRACKIO_DIR", str(run.run_dir.absolute().parent / "trackio"))
        self._storage = _library().SQLiteStorage
        self._info = run
        held = self._storage.get_max_step_for_run(self._project, run_id=self._run_id)
        self._steps = WaitingSteps(-1 if held is None else int(held))
        self._config = dict(self._storage.get_run_config(self._project, self._name, run_id=self._run_id) or {})
        return Opened(None, self._steps.last_step, is_new=held is None)

    def log_hparams(self, values: Mapping[str, Cell]) -> None:
        """Record settings."""
        self._config.update(values)
        self._is_config_new = True

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        self._steps.add(metrics, step)

    def flush(self) -> None:
        """Write what waits."""
        if self._info is None:
            return
        info, waiting = self._info, self._steps.waiting()
        if not waiting and self._is_config_new:
            waiting = self._newest_held()
        if not waiting:
            return
        described = {"_Group": info.group or None, "tags": list(info.tags), "notes": info.notes}
        self._storage.bulk_log(
            self._project,
            self._name,
            [metrics for _, metrics in waiting],
            steps=[step for step, _ in waiting],
            config={**self._config, **described},
            log_ids=[files.sha256_json([self._run_id, step, sorted(metrics)]) for step, metrics in waiting],
            run_id=self._run_id,
        )
        self._steps.sent(waiting[-1][0])
        self._is_config_new = False

    def finish(self, status: RunStatus) -> None:
        """Write what waits."""
        self.flush()
        self._info = None

    def _newest_held(self) -> list[Step]:
        """The newest step the database holds: written again it is the same row, and the settings with it are new."""
        logs = self._storage.get_logs(self._project, self._name, run_id=self._run_id)
        newest = max(logs, key=lambda log: int(log["step"]), default=None)
        if newest is None:
            return []
        return [(int(newest["step"]), {name: newest[name] for name in newest if name not in ("step", "timestamp")})]

    @property
    def _name(self) -> str:
        assert self._info is not None, "start comes first"
        return self._info.name or self._info.run_id

    @property
    def _project(self) -> str:
        assert self._info is not None, "start comes first"
        return _NOT_IN_PROJECTS.sub("-", self._info.project)

    @property
    def _run_id(self) -> str:
        assert self._info is not None, "start comes first"
        return self._info.tracker_id or self._info.run_id


def _library() -> ModuleType:
    """Trackio's storage, imported when its folder is known."""
    from trackio import sqlite_storage  # noqa: PLC0415

    return sqlite_storage
