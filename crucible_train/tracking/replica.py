"""A run as one tracker has it, or is to have it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from crucible_train import files, journal
from crucible_train.cursor import Cursor, read_cursor, write_cursor
from crucible_train.journal import FOLDER, RUN_FILE, TrackedRun, plain, replica_file
from crucible_train.tracking.tail import EventFeed, StepFeed


@dataclass(frozen=True, slots=True)
class Left:
    """What a tracker lacks.

    Attributes:
        num_steps: steps that could be sent now.
        num_events: events that are not there yet, with those that it did not take.
        is_behind: whether there is anything to do.
        num_held: 1 where the newest step is held back, since the run may add to it when it goes on; else 0.
    """

    num_steps: int
    num_events: int
    is_behind: bool
    num_held: int = 0

    @property
    def text(self) -> str:
        """Such as ``3 steps and 1 event``."""
        counts = ((self.num_steps, "step"), (self.num_events, "event"))
        return " and ".join(f"{num} {what}{'' if num == 1 else 's'}" for num, what in counts if num) or "its end"


@dataclass(frozen=True, slots=True)
class Replica:
    """A run and the name of its replica: the tracker's, and for a later export some digits after it."""

    run_dir: Path
    name: str

    @property
    def cursor_path(self) -> Path:
        """Where its cursor is kept."""
        return replica_file(self.run_dir, self.name, "json")

    @property
    def log_path(self) -> Path:
        """What its follower printed."""
        return replica_file(self.run_dir, self.name, "log")

    def lock(self) -> FileLock:
        """Held by the one process that sends it."""
        return FileLock(replica_file(self.run_dir, self.name, "lock"))

    def is_at_work(self) -> bool:
        """Whether a process is sending it now."""
        lock = self.lock()
        if not Path(lock.lock_file).exists():
            return False
        try:
            with lock.acquire(blocking=False):
                return False
        except TimeoutError:
            return True

    def remove(self) -> bool:
        """Take away what is kept of it here, unless a process is sending it now; whether that was done."""
        lock = self.lock()
        try:
            with lock.acquire(blocking=False):
                for path in (self.cursor_path, self.log_path, Path(lock.lock_file)):
                    files.remove(path)
                return True
        except TimeoutError:
            return False

    def cursor(self, run: TrackedRun) -> Cursor:
        """How far it has come. One that is another run's, in a copied folder, does not count."""
        found = read_cursor(self.cursor_path)
        if found is None:
            return Cursor(self.name, run.info.tracker_id)
        is_own = self.name != found.tracker or found.tracker_id == run.info.tracker_id
        return found if is_own else Cursor(self.name, run.info.tracker_id)

    def left(self, run: TrackedRun) -> Left:
        """What it lacks."""
        cursor, steps, events = self.cursor(run), StepFeed(self.run_dir), EventFeed(self.run_dir)
        num_all = len(steps.read(cursor.last_step, is_whole=True))
        num_steps = len(steps.read(cursor.last_step, is_whole=run.has_all_steps))
        num_events = len(events.read(cursor.num_events)) + len(cursor.left_out)
        steps.close()
        events.close()
        is_closed = cursor.state == "done" if run.phase == "done" else cursor.state in ("done", "left")
        return Left(num_steps, num_events, bool(num_steps or num_events or not is_closed), num_all - num_steps)


def replicas(run: TrackedRun) -> Sequence[Replica]:
    """Those of the run's trackers, then those of later exports."""
    folder, own = run.info.run_dir, list(run.trackers)
    names = {plain(name) for name in own} | {Path(RUN_FILE).stem}
    others = sorted(path.stem for path in (folder / FOLDER).glob("*.json") if path.stem not in names)
    return [Replica(folder, name) for name in [*own, *others]]


def exported(run: TrackedRun, tracker: str) -> Replica:
    """A new replica of a run, beside any that the tracker has."""
    tracker_id = journal.new_tracker_id(run.info.run_id)
    made = Replica(run.info.run_dir, f"{plain(tracker)}-{tracker_id[-8:]}")
    write_cursor(made.cursor_path, Cursor(tracker, tracker_id))
    return made


def named(run: TrackedRun, cursor: Cursor) -> TrackedRun:
    """The run under the id that the replica gave it."""
    return replace(run, info=replace(run.info, tracker_id=cursor.tracker_id))
