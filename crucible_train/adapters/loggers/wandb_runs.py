"""Runs in Weights & Biases, online or offline."""

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the library is imported

import wandb
from wandb.errors import AuthenticationError, CommError

from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.adapters.loggers.waiting_steps import WaitingSteps
from crucible_train.adapters.loggers.wandb_artifacts import aliases, kept, made_of
from crucible_train.adapters.loggers.wandb_wish import wish_s
from crucible_train.adapters.reasons import in_one_line
from crucible_train.errors import ConfigError
from crucible_train.ports import Cell, LoggedArtifact, LoggerUnavailable, Opened, RunInfo, RunStatus

_NOT_IN_IDS = re.compile(r"[^\w.-]")
_INIT_TIMEOUT_S, _FINISH_TIMEOUT_S = 20.0, 30.0
_EXIT_CODES: Mapping[RunStatus, int] = {"done": 0, "failed": 1, "interrupted": 130}


class WandbLogger(QuietLogger):
    """One W&B run per ``tracker_id``; ``WANDB_MODE`` and ``WANDB_BASE_URL`` say where.

    The library hands everything to a process of its own and confirms nothing before the run is finished. So ``flush``
    finishes the run and the next call resumes it, about 0.2 s on loopback; ``flush_every_s`` keeps that
    rare. Until then steps are kept
    here; a run that is resumed says which step it holds, and only what is newer is sent. A step must be complete when
    ``flush`` is called. Artifacts are confirmed
    one by one; each may take ``LoggedArtifact.upload_s`` longer.

    Offline nothing can be resumed: ``start`` removes the folders that an earlier start left for this run and answers
    that nothing is held, and nothing is on disk for certain before ``finish``.
    """

    flush_every_s = 15.0

    def __init__(self) -> None:
        """Nothing is open."""
        self._info: RunInfo | None = None
        self._run: Any = None
        self._steps = WaitingSteps()
        self._is_offline = False

    def start(self, run: RunInfo) -> Opened:
        """Begin the run, or go on with it.

        Raises:
            LoggerUnavailable: the service does not answer in time.
            ConfigError: the library is switched off.
        """
        mode = (os.environ.get("WANDB_MODE") or wandb.setup().settings.mode).lower()
        if mode == "disabled":
            raise ConfigError("W&B is switched off by WANDB_MODE=disabled, or by `wandb disabled`; nothing is sent")
        self._info = run
        self._is_offline = mode in ("offline", "dryrun")
        if self._is_offline:
            for torn in sorted(self._folder.glob(f"wandb/offline-run-*-{self._id}")):
                shutil.rmtree(torn)
        opened = self._opened()
        self._steps = WaitingSteps(_last_step(opened))
        url = None if self._is_offline else opened.url
        return Opened(url, self._steps.last_step, is_new=not opened.resumed)

    def log_hparams(self, values: Mapping[str, Cell]) -> None:
        """Record settings as the run's config."""
        self._opened().config.update(dict(values), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        self._steps.add(metrics, step)

    def log_text(self, name: str, text: str, step: int) -> None:
        """Record a text in the run's summary; the newest of a name is kept."""
        self._opened().summary[name] = text

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Record a table in the run's summary; the newest of a name is kept."""
        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self._opened().summary[name] = table

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a picture in the run's summary; the newest of a name is kept."""
        self._opened().summary[name] = wandb.Image(str(path))

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Record an artifact that the run made, with its files, or one that it used, by its digest.

        What it used stands in the config as well; offline only there, as the library takes no used artifact then.

        Raises:
            LoggerUnavailable: the service did not take it in time.
        """
        run, made, wait_s = self._opened(), made_of(artifact), math.ceil(_FINISH_TIMEOUT_S + artifact.upload_s)
        if artifact.is_input:
            run.config.update({f"inputs.{artifact.name}": made.metadata}, allow_val_change=True)
        if self._is_offline and not artifact.is_input:
            run.log_artifact(made, aliases=aliases(artifact))
        elif not self._is_offline:
            try:
                with kept():
                    if artifact.is_input:
                        run.use_artifact(made)
                    else:
                        run.log_artifact(made, aliases=aliases(artifact)).wait(timeout=wait_s)
            except LoggerUnavailable:
                self._let_go()
                raise

    def link(self, name: str, url: str) -> None:
        """Record an address in the run's summary."""
        self._opened().summary[f"link/{name}"] = url

    def flush(self) -> None:
        """Send what waits; online, return when the service has it.

        Raises:
            LoggerUnavailable: the service did not take everything in time; what waits is kept.
        """
        if self._is_offline:
            self._send()
        elif len(self._steps) or self._run is not None:
            self._close(exit_code=None)

    def finish(self, status: RunStatus) -> None:
        """Send what waits and end the run."""
        if self._info is None:
            return
        self._close(_EXIT_CODES[status])
        self._info = None

    @property
    def _folder(self) -> Path:
        assert self._info is not None, "start comes first"
        return Path(os.environ.get("WANDB_DIR") or self._info.run_dir.absolute().parent)

    @property
    def _id(self) -> str:
        assert self._info is not None, "start comes first"
        return _NOT_IN_IDS.sub("-", self._info.tracker_id or self._info.run_id)[:128]

    def _opened(self, *, is_last: bool = False) -> Any:
        """The run, resumed where a flush had finished it."""
        if self._run is not None:
            return self._run
        info = self._info
        assert info is not None, "start comes first"
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            disable_code=True,
            disable_git=True,
            save_code=False,
            console="off",
            silent=True,
            init_timeout=_INIT_TIMEOUT_S,
            finish_timeout=_FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
            x_update_finish_state=is_last,
        )
        try:
            self._run = wandb.init(
                project=info.project,
                id=self._id,
                name=info.name or info.run_id,
                group=info.group or None,
                tags=list(info.tags),
                notes=info.notes or None,
                dir=str(self._folder),
                mode="offline" if self._is_offline else None,
                resume=None if self._is_offline else "allow",
                reinit="create_new",
                settings=settings,
            )
        except AuthenticationError:
            raise
        except (CommError, TimeoutError) as error:
            wish = wish_s(f"{wandb.setup().settings.base_url}/graphql")
            wandb.teardown()  # the library's process keeps the id of a run that it could not begin
            raise LoggerUnavailable(f"W&B: {in_one_line(error)}", wish) from error
        return self._run

    def _let_go(self) -> None:
        """Leave the run, so that it can be opened anew; what was on its way may not arrive."""
        run, self._run = self._run, None
        with suppress(CommError, TimeoutError):
            run.finish(exit_code=None)

    def _send(self, *, is_last: bool = False) -> None:
        run = self._opened(is_last=is_last)
        held = self._steps.last_step if self._is_offline else max(self._steps.last_step, _last_step(run))
        for step, metrics in self._steps.waiting():
            if step > held:
                run.log(metrics, step=step, commit=True)
        if self._is_offline and self._steps.waiting():
            self._steps.sent(self._steps.waiting()[-1][0])

    def _close(self, exit_code: int | None) -> None:
        if exit_code is not None and not self._is_offline and self._run is not None:
            self._close(exit_code=None)  # the run is opened once more, to be marked as ended
        self._send(is_last=exit_code is not None)
        waiting, run, self._run = self._steps.waiting(), self._run, None
        try:
            run.finish(exit_code=exit_code)
        except (CommError, TimeoutError) as error:
            stream = f"{run.settings.base_url}/files/{run.entity}/{run.project}/{run.id}/file_stream"
            raise LoggerUnavailable(f"W&B: {in_one_line(error)}", wish_s(stream)) from error
        if waiting:
            self._steps.sent(waiting[-1][0])


def _last_step(run: Any) -> int:
    """The newest step the service held when the run was opened."""
    return int(run.starting_step) - 1 if run.resumed else -1
