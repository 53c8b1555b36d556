"""The last thing a flow does: tell the trackers what came out, and wait a little for them."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from crucible_train import files, journal, terminal, wiring
from crucible_train.config.run_config import RunConfig
from crucible_train.cursor import write_cursor
from crucible_train.journal import TrackedRun
from crucible_train.metrics_file import last_step
from crucible_train.stages.tracked import note_results, run_info, status_of
from crucible_train.tracking.replica import Replica

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class SentTo:
    """Where a tracker has a run.

    Attributes:
        tracker: its name.
        url: where a person finds the run; None where there is no page.
        lacks: what it lacks, in words; empty where it has everything.
    """

    tracker: str
    url: str | None
    lacks: str


async def conclude(run_dir: Path, config: RunConfig) -> Sequence[SentTo]:
    """Note the results of a finished run, and wait up to ``tracking.finish_wait_s`` until its trackers have them.

    One that is behind is told of in a line; its follower goes on for a while after this process has ended. Where there
    is nothing to send, no process is started.
    """
    names = wiring.tracker_names(config.report_to)
    if not names:
        return ()
    try:
        known = journal.read_run(run_dir)
        run = _noted(run_dir, config, names, known)
        is_renamed = known is not None and _told_of(known) != _told_of(run)
        replicas = [Replica(run_dir, name) for name in names]
        behind = [replica for replica in replicas if is_renamed or replica.left(run).is_behind]
        await _settled(run, behind, config.tracking.finish_wait_s, is_renamed=is_renamed)
    except (OSError, ValueError) as error:  # such as a journal that somebody has damaged
        terminal.field("tracking", f"the results could not be noted for trackers: {error}")
        return ()
    return [_told(run, replica) for replica in replicas]


@contextmanager
def at_work(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder while the block works in it; where the block breaks off, the run's trackers are told how."""
    with files.held(run_dir):
        try:
            yield
        except BaseException as error:
            _break_off(run_dir, error)
            raise


def _break_off(run_dir: Path, error: BaseException) -> None:
    """A failure while training has been told of; one after it, such as while evaluating, has not.

    A run that was done before stays so, and one that stands at training may be another process's.
    """
    status, known = status_of(error), journal.read_run(run_dir)
    if known is None or known.phase in ("training", "done", status):
        return
    try:
        journal.set_phase(run_dir, status)
        for replica in (Replica(run_dir, name) for name in known.trackers):
            if not replica.is_at_work():
                _begin_again(known, replica)
    except OSError as refused:  # what stopped the run matters more
        terminal.field("tracking", f"trackers could not be told that the run broke off: {refused}")


def _begin_again(run: TrackedRun, replica: Replica) -> None:
    """Start the follower of a replica that has none, so that how its last one ended no longer counts."""
    write_cursor(replica.cursor_path, replace(replica.cursor(run), state="new", problem=None))
    wiring.start_follower(run.info.run_dir, replica.name)


def _noted(run_dir: Path, config: RunConfig, names: Sequence[str], known: TrackedRun | None) -> TrackedRun:
    note_results(run_dir, config.tracking.artifacts)
    num_steps = max(last_step(run_dir), 0)
    return journal.begin(run_info(config, run_dir, num_steps, known.info.first_step if known else 0), names, "done")


def _told_of(run: TrackedRun) -> tuple[object, ...]:
    """What a tracker shows of a run besides its settings, which are an event."""
    info = run.info
    return info.name, info.project, info.group, tuple(info.tags), info.notes


async def _settled(run: TrackedRun, behind: Sequence[Replica], seconds: float, *, is_renamed: bool) -> None:
    """Wait until the trackers have everything, or what holds them up is not going to change, or time is up.

    A replica whose follower has left gets another one.
    """
    newest, num_events = last_step(run.info.run_dir), len(journal.read_events(run.info.run_dir))

    def is_settled(replica: Replica) -> bool:
        cursor = replica.cursor(run)
        has_all = cursor.last_step >= newest and cursor.num_events >= num_events
        is_given_up = cursor.state == "refused" and not replica.is_at_work()
        return is_given_up or (cursor.state == "done" and has_all)

    until, waiting = time.monotonic() + seconds, list(behind)
    while True:
        for replica in [one for one in waiting if not one.is_at_work()]:
            if is_renamed or replica.left(run).is_behind:
                _begin_again(run, replica)
            waiting.remove(replica)
        is_told = not (is_renamed and waiting)
        if time.monotonic() >= until or (is_told and all(is_settled(replica) for replica in behind)):
            return
        await asyncio.sleep(_LOOK_EVERY_S)


def _told(run: TrackedRun, replica: Replica) -> SentTo:
    cursor, left = replica.cursor(run), replica.left(run)
    lacks = left.text if left.is_behind else ""
    if lacks:
        reasons = [*([cursor.problem] if cursor.problem else []), *(one.why for one in cursor.left_out)]
        why = f": {' | '.join(reasons)}" if reasons else ""
        terminal.field(
            "tracking",
            f"{replica.name} lacks {lacks}{why}; to send it: python -m crucible_train.tracking sync {run.info.run_dir}",
        )
    else:
        terminal.field("tracking", f"{replica.name}: {cursor.url or 'all of it is there'}")
    return SentTo(replica.name, cursor.url, lacks)
