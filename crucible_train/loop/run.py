"""One training run in its directory: resume, log, save, stop."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from crucible_train import checkpoints, files
from crucible_train.checkpoints import Checkpoint, CheckpointFolder, checkpoint_name
from crucible_train.config.sections import CheckpointConfig
from crucible_train.errors import CheckpointError, RunError, TrainingError
from crucible_train.loop.state import Best, LoopState
from crucible_train.metrics_file import MetricsFile, read_metrics
from crucible_train.ports import MetricsLogger, TrainingClient
from crucible_train.schedules import count_steps
from crucible_train.types import ArtifactRef

T = TypeVar("T")
_LOOP_FILE = "loop.json"
_METRICS_COPY = "metrics.jsonl"
_ORIGIN_FILE = "origin.json"


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
        on_start: Callable[[int], None] = lambda _: None,
        kept: Mapping[str, bytes] | None = None,
    ) -> None:
        """Open a run directory.

        Args:
            run_dir: the run's folder; its ``checkpoints`` must be where ``client`` stores states.
            client: what is trained.
            logger: where numbers go besides ``metrics.jsonl``.
            config: when to save, what to keep, where to go on from.
            report: is told, in a line, what a person should know.
            on_start: is told after how many steps the run begins, or goes on.
            kept: files that every checkpoint holds besides, by name.
        """
        self.run_dir = run_dir
        self.checkpoints = CheckpointFolder(run_dir)
        self.metrics = MetricsFile(run_dir)
        self._client = client
        self._logger = logger
        self._config = config
        self._report = report
        self._on_start = on_start
        self._kept = kept or {}
        self._saving: asyncio.Task[None] | None = None
        self._saved_step = 0
        self._durable_step = 0
        self._saved_at = time.monotonic()
        self._attach: Callable[[], Mapping[str, bytes]] = dict
        self._resumed_from: Path | None = None
        self._load: Callable[[], Mapping[str, float]] = dict

    def watch(self, load: Callable[[], Mapping[str, float]]) -> None:
        """Log with every step what this tells of the machine; it must not wait."""
        self._load = load

    def attach(self, attach: Callable[[], Mapping[str, bytes]]) -> None:
        """Have every checkpoint hold these files besides, as they are when it is made."""
        self._attach = attach

    def attached(self, name: str) -> bytes | None:
        """Such a file of the checkpoint that ``resume`` went on from; None where the run begins, or it has none."""
        path = None if self._resumed_from is None else self._resumed_from / name
        return path.read_bytes() if path is not None and path.is_file() else None

    async def resume(self) -> LoopState:
        """Go on from the newest sound checkpoint, or begin.

        Raises:
            CheckpointError: there are checkpoints, or were, but none is sound.
        """
        with _writing(self.run_dir):
            for folder in (self.run_dir, self.checkpoints.path):
                files.remove_temporaries(folder)
        checkpoint = self._checkpoint_to_resume()
        if checkpoint is None:
            self._rewind(LoopState(), b"", last_kept=-1)
            self._on_start(0)
            return LoopState()
        await self._client.load_state(
            ArtifactRef(uri=str(checkpoint.folder), sha256=checkpoint.sha256, kind="state", size=0)
        )
        self._resumed_from = checkpoint.folder
        state = _loop_state(checkpoint.folder)
        metrics = (checkpoint.folder / _METRICS_COPY).read_bytes()
        if checkpoint.folder.resolve().parent == self.checkpoints.path.resolve():
            self._rewind(state, metrics, last_kept=state.step)
            self._saved_step = self._durable_step = state.step
        else:  # another run's: its best checkpoint is not here, and what is here does not lead to this state
            state = replace(state, best=Best())
            self._rewind(state, metrics, last_kept=-1)
        self._report(f"goes on from step {state.step} ({checkpoint.folder})")
        self._on_start(state.step)
        return state

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the numbers of a step and the machine's load, here and in every logger.

        Raises:
            TrainingError: one of them is not a finite number.
            RunError: they could not be written.
        """
        metrics = {**metrics, **self._load()}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingError(f"{name} is {value} at step {step}")
        with _writing(self.metrics.path):
            self.metrics.log_metrics(metrics, step)
        self._logger.log_metrics(metrics, step)

    def last_metrics(self) -> Mapping[str, float]:
        """The numbers of the last step that is logged; none before the first."""
        with _writing(self.metrics.path):
            self.metrics.flush()
        records = read_metrics(self.run_dir)
        return {name: value for name, value in records[-1].items() if name != "step"} if records else {}

    def is_save_due(self, step: int, cadence: Cadence) -> bool:
        """Whether steps or minutes say it is time."""
        is_late = 0 < self._config.save_minutes * 60 <= time.monotonic() - self._saved_at
        return step > self._saved_step and (cadence.is_due(step) or is_late)

    async def save(self, state: LoopState) -> None:
        """Begin to save; the next steps may run while it is written. Waits for the save before this one.

        Raises:
            RunError: the save before this one failed.
        """
        await self.settle()
        if state.step == self._durable_step:
            return
        with _writing(self.metrics.path):
            metrics = self.metrics.contents()
        loop = files.canonical_json(state.to_json()).encode()
        attachments = {**self._kept, **self._attach(), _LOOP_FILE: loop, _METRICS_COPY: metrics}
        self._saved_step, self._saved_at = state.step, time.monotonic()
        self._saving = asyncio.create_task(self._save(state, attachments))
        await asyncio.sleep(0)  # lets the save claim its place in the engine's queue before the next step does

    async def settle(self) -> None:
        """Wait until the save under way, if any, is on the disk. Whoever is cancelled here leaves it to go on.

        Raises:
            RunError: it failed.
        """
        if self._saving is not None:
            try:
                await asyncio.shield(self._saving)
            finally:
                if self._saving.done():
                    self._saving = None

    @asynccontextmanager
    async def guarded(self, current: Callable[[], LoopState | None]) -> AsyncIterator[None]:
        """Run a loop such that, however it ends, the last finished step is saved; none where ``current`` has no state.

        A failure, or the cancellation by which a run is asked to stop, is raised again after that.
        """
        try:
            yield
            await self.settle()
        except (Exception, asyncio.CancelledError):
            await self._save_last(current())
            raise

    async def _save_last(self, state: LoopState | None) -> None:
        if state is None:
            with contextlib.suppress(RunError):  # it was told of, and whatever stopped the run matters more
                await self.settle()
            self._report("stopped in the middle of a step; the newest checkpoint is where it goes on")
            return
        try:
            with contextlib.suppress(RunError):  # a save that failed is tried again
                await self.settle()
            await self.save(state)
            await self.settle()
        except RunError as error:
            self._report(f"the state at step {state.step} is not saved: {error}")
        else:
            self._report(f"saved at step {state.step}" if state.step else "stopped before the first step")

    async def _save(self, state: LoopState, attachments: Mapping[str, bytes]) -> None:
        await self._client.save_state(checkpoint_name(state.step), attachments=attachments)
        self._durable_step = state.step
        with _writing(self.checkpoints.index_path):
            await asyncio.to_thread(self._prune, state)

    def _prune(self, state: LoopState) -> None:
        protected = frozenset({state.best.step} if state.best.value is not None else ())
        self.checkpoints.prune(self._config.save_total_limit, protected)

    def _rewind(self, state: LoopState, metrics: bytes, *, last_kept: int) -> None:
        """Put metrics and checkpoints back to where they stood at a state."""
        with _writing(self.run_dir):
            self.metrics.rewind(state.step, metrics)
            self.checkpoints.discard_after(last_kept)
            self._prune(state)

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        wanted = self._config.resume_from_checkpoint
        if wanted == "never":
            return None
        if wanted == "auto":
            return self.checkpoints.newest_good(self._report, self._check_best)
        folder = Path(wanted).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"checkpoint.resume_from_checkpoint: {folder}: there is no such checkpoint")
        start = Checkpoint(folder, 0, checkpoints.verify(folder))
        if folder.parent.resolve() == self.checkpoints.path.resolve():
            return start
        origin = self.run_dir / _ORIGIN_FILE
        if files.read_json(origin) == start.sha256:  # this run began there before: go on with what it did since
            found = self.checkpoints.newest_good(self._report, self._check_best)
            if found is not None:
                return found
        files.write_json(origin, start.sha256)
        return start

    def _check_best(self, folder: Path) -> None:
        """Check the best checkpoint that a state refers to, where its weights are to be published in the end."""
        best = _loop_state(folder).best
        best_folder = self.checkpoints.path / checkpoint_name(best.step)
        if self._config.load_best_model_at_end and best.value is not None and best_folder.name != folder.name:
            try:
                checkpoints.verify(best_folder)
            except CheckpointError as error:
                raise CheckpointError(f"{folder}: the best one before it is lost: {error}") from error


async def unbroken(work: Awaitable[T]) -> T:
    """Await what must not be left without knowing whether it was done, such as a step of the optimizer.

    A cancellation meanwhile takes effect where the caller next waits.
    """
    future, is_cancelled = asyncio.ensure_future(work), False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled and (task := asyncio.current_task()) is not None:
        task.uncancel()
        task.cancel()
    return future.result()


def _loop_state(folder: Path) -> LoopState:
    """The loop's state in a verified checkpoint."""
    return LoopState.from_json(files.read_json(folder / _LOOP_FILE))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name what could not be written.

    Raises:
        RunError: the disk refused.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: it could not be written: {error.strerror or error}") from error
