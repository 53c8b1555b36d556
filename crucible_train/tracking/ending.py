"""The last thing a flow does: tell the trackers what came out, and wait a little for them."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crucible_train import journal, terminal, wiring
from crucible_train.config.run_config import RunConfig
from crucible_train.journal import TrackedRun
from crucible_train.metrics_file import last_step
from crucible_train.stages.tracked import note_results, run_info
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
        run = _noted(run_dir, config, names)
        replicas = [Replica(run_dir, name) for name in names]
        behind = [replica for replica in replicas if replica.left(run).is_behind]
        await _settled(run, behind, config.tracking.finish_wait_s)
    except (OSError, ValueError) as error:  # such as a journal that somebody has damaged
        terminal.field("tracking", f"the results could not be noted for trackers: {error}")
        return ()
    return [_told(run, replica) for replica in replicas]


def _noted(run_dir: Path, config: RunConfig, names: Sequence[str]) -> TrackedRun:
    note_results(run_dir, config.tracking.artifacts)
    known = journal.read_run(run_dir)
    if known is not None and known.phase == "done" and list(known.trackers) == names:
        return known
    num_steps = max(last_step(run_dir), 0)
    first_step = 0 if known is None else known.info.first_step
    return journal.begin(run_info(config, run_dir, num_steps, first_step), names, "done")


async def _settled(run: TrackedRun, behind: Sequence[Replica], seconds: float) -> None:
    """Wait until the trackers have everything, or what holds them up is not going to change, or time is up.

    A replica whose follower has left gets another one.
    """
    newest, num_events = last_step(run.info.run_dir), len(journal.read_events(run.info.run_dir))

    def is_settled(replica: Replica) -> bool:
        cursor = replica.cursor(run)
        has_all = cursor.last_step >= newest and cursor.num_events >= num_events
        return cursor.state == "refused" or (cursor.state == "done" and has_all)

    until, waiting = time.monotonic() + seconds, list(behind)
    while True:
        for replica in [one for one in waiting if not one.is_at_work()]:
            wiring.start_follower(run.info.run_dir, replica.name)
            waiting.remove(replica)
        if time.monotonic() >= until or all(is_settled(replica) for replica in behind):
            return
        await asyncio.sleep(_LOOK_EVERY_S)


def _told(run: TrackedRun, replica: Replica) -> SentTo:
    cursor, left = replica.cursor(run), replica.left(run)
    lacks = left.text if left.is_behind else ""
    if lacks:
        why = f": {cursor.problem}" if cursor.problem else ""
        terminal.field(
            "tracking",
            f"{replica.name} lacks {lacks}{why}; to send it: python -m crucible_train.tracking sync {run.info.run_dir}",
        )
    else:
        where = cursor.url or "all of it is there"
        without = f" (without {cursor.left_out})" if cursor.left_out else ""
        terminal.field("tracking", f"{replica.name}: {where}{without}")
    return SentTo(replica.name, cursor.url, lacks)
