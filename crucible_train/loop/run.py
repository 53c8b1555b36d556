"""One training run in its directory: resume, log, save, stop."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from crucible_train import checkpoints, files
from crucible_train.checkpoints import Checkpoint, CheckpointFolder, checkpoint_name
from crucible_train.config.sections import CheckpointConfig
from crucible_train.errors import CheckpointError
from crucible_train.loop.state import LoopState
from crucible_train.metrics_file import MetricsFile
from crucible_train.ports import MetricsLogger, TrainingClient
from crucible_train.schedules import count_steps
from crucible_train.types import ArtifactRef

_LOOP_FILE = "loop.json"
_METRICS_COPY = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Cadence:
    """Every so many steps, and always at the last."""

    every: int
    num_steps: int

    @classmethod
    def of(cls, value: float, num_steps: int) -> "Cadence":
        """From a field: a number of steps, a share of all steps in (0, 1), or 0 for the last only."""
        return cls(max(1, count_steps(value, num_steps)) if value > 0 else 0, num_steps)

    def is_due(self, step: int) -> bool:
        """Whether it is time after ``step`` steps."""
        return step == self.num_steps or (self.every > 0 and step % self.every == 0)


class TrainingRun:
    """Keeps a run's files and decides when they are written.

    Saving does not stop the loop: the state is copied between two steps and written while the next ones run. A
    checkpoint holds weights, optimizer, the loop's state and the metrics so far, so that a run goes on from it exactly.
    """

    def __init__(
        self,
        run_dir: Path,
        client: TrainingClient,
        logger: MetricsLogger,
        config: CheckpointConfig,
        report: Callable[[str], None],
    ) -> None:
        """Open a run directory.

        Args:
            run_dir: the run's folder; its ``checkpoints`` must be where ``client`` stores states.
            client: what is trained.
            logger: where numbers go besides ``metrics.jsonl``.
            config: when to save, what to keep, where to go on from.
            report: is told, in a line, what a person should know.
        """
        self.run_dir = run_dir
        self.checkpoints = CheckpointFolder(run_dir)
        self.metrics = MetricsFile(run_dir)
        self._client = client
        self._logger = logger
        self._config = config
        self._report = report
        self._saving: asyncio.Task[None] | None = None
        self._saved_step = 0
        self._saved_at = time.monotonic()

    async def resume(self) -> LoopState:
        """Go on from the newest sound checkpoint, or begin.

        Raises:
            CheckpointError: there are checkpoints, but none is sound.
        """
        files.remove_temporaries(self.checkpoints.path)
        checkpoint = self._checkpoint_to_resume()
        if checkpoint is None:
            self.checkpoints.discard_after(-1)
            self.metrics.rewind(0, b"")
            return LoopState()
        await self._client.load_state(
            ArtifactRef(uri=str(checkpoint.folder), sha256=checkpoint.sha256, kind="state", size=0)
        )
        state = LoopState.from_json(json.loads((checkpoint.folder / _LOOP_FILE).read_bytes()))
        self.metrics.rewind(state.step, (checkpoint.folder / _METRICS_COPY).read_bytes())
        if checkpoint.folder.parent == self.checkpoints.path:
            self.checkpoints.discard_after(state.step)
            self.checkpoints.record(state.step, sha256=checkpoint.sha256)
        self._saved_step = state.step
        self._report(f"goes on from step {state.step} ({checkpoint.folder})")
        return state

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the numbers of a step, here and in every logger."""
        self.metrics.log_metrics(metrics, step)
        self._logger.log_metrics(metrics, step)

    def is_save_due(self, step: int, cadence: Cadence) -> bool:
        """Whether steps or minutes say it is time."""
        is_late = 0 < self._config.save_minutes * 60 <= time.monotonic() - self._saved_at
        return step > self._saved_step and (cadence.is_due(step) or is_late)

    async def save(self, state: LoopState) -> None:
        """Begin to save; the next steps may run while it is written. Waits for the save before this one."""
        await self.settle()
        self._saved_step, self._saved_at = state.step, time.monotonic()
        attachments = {
            _LOOP_FILE: files.canonical_json(state.to_json()).encode(),
            _METRICS_COPY: self.metrics.contents(),
        }
        self._saving = asyncio.create_task(self._save(state, attachments))
        await asyncio.sleep(0)  # lets the save claim its place in the engine's queue before the next step does

    async def settle(self) -> None:
        """Wait until the save under way, if any, is on the disk."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            await saving

    @asynccontextmanager
    async def guarded(self, current: Callable[[], LoopState]) -> AsyncIterator[None]:
        """Run a loop such that, however it ends, the last finished step is saved.

        A failure, or the cancellation by which a run is asked to stop, is raised again after that.
        """
        try:
            yield
        except (Exception, asyncio.CancelledError):
            await self._save_last(current())
            self._report(f"saved at step {current().step}")
            raise
        await self.settle()

    async def _save_last(self, state: LoopState) -> None:
        await self.settle()
        if state.step > self._saved_step:
            await self.save(state)
            await self.settle()

    async def _save(self, state: LoopState, attachments: Mapping[str, bytes]) -> None:
        ref = await self._client.save_state(checkpoint_name(state.step), attachments=attachments)
        self.checkpoints.record(state.step, sha256=ref.sha256)
        protected = frozenset({state.best.step} if state.best.value is not None else ())
        self.checkpoints.prune(self._config.save_total_limit, protected)

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        wanted = self._config.resume_from_checkpoint
        if wanted == "never":
            return None
        if wanted == "auto":
            return self.checkpoints.newest_good(self._report)
        folder = Path(wanted).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"checkpoint.resume_from_checkpoint: {folder}: there is no such checkpoint")
        return Checkpoint(folder, 0, checkpoints.verify(folder))
