"""The commands of ``python -m crucible_train.tracking``."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import Timeout

from crucible_train import files, journal, terminal, wiring
from crucible_train.cursor import Cursor
from crucible_train.errors import ConfigError, CrucibleError
from crucible_train.journal import TrackedRun
from crucible_train.metrics_file import METRICS_FILE
from crucible_train.tracking.follow import DRAIN_S, Follower, print_failure
from crucible_train.tracking.recorded import as_run_directory
from crucible_train.tracking.replica import Left, Replica, exported, replicas

_LOOK_EVERY_S = 0.2
_LOCK_S = 2.0
"""How long a lock may be held by somebody who only looks whether it is."""
_PROGRAM = "python -m crucible_train.tracking"
_NEPTUNE, _JSONL = "run_operations.sqlite3", "jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 1 something is still to be sent, 2 the input is wrong."""
    try:
        given = _parser().parse_args(argv)
        return int(given.run(given))
    except CrucibleError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return error.exit_status
    except Exception as error:  # noqa: BLE001 - shown whole, but for secrets: a follower's log is kept
        print_failure(error)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = terminal.WordParser(
        prog=_PROGRAM, description="What trackers have of runs, and sending them what they lack."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=terminal.WordParser)

    status = commands.add_parser("status", help="what the trackers of runs have", description="What trackers have.")
    _takes_places(status)
    status.set_defaults(run=_status)

    sync = commands.add_parser(
        "sync", help="send trackers what they lack", description="Send the trackers of runs what they lack."
    )
    _takes_places(sync)
    _takes_wait(sync)
    sync.add_argument(
        "--ended",
        action="store_true",
        help="a run that broke off will not go on: its newest step, which it might have added to, is sent too",
    )
    sync.set_defaults(run=_sync)

    export = commands.add_parser(
        "export",
        help="send a run to any tracker, as a new run there",
        description="Send a run, from its own files or from a file of Neptune's, to any tracker, as a new run there.",
    )
    export.add_argument("place", type=Path, metavar="RUN", help=f"a run directory, or a file {_NEPTUNE}")
    known = ", ".join(wiring.TRACKERS)
    export.add_argument(
        "--to",
        required=True,
        action="append",
        metavar="NAME",
        help=f"one of {known}, or module:Class; may be repeated; {_JSONL} makes a run directory of a file of "
        "Neptune's, as the others do on the way",
    )
    export.add_argument(
        "--into", type=Path, metavar="FOLDER", help="that run directory; runs/ID in the working directory at first"
    )
    _takes_wait(export)
    export.set_defaults(run=_export, ended=True)

    forget = commands.add_parser(
        "forget",
        help="give up on an export that will never arrive",
        description="Give up on an export, or on a tracker that report_to no longer names: nothing more is sent there, "
        "and status and sync speak of it no more. What it has stays there.",
    )
    forget.add_argument("place", type=Path, metavar="RUN", help="a run directory")
    forget.add_argument("replica", nargs="+", metavar="NAME", help="as status calls it")
    forget.set_defaults(run=_forget)

    follow = commands.add_parser("follow", help="send a run that is going on; training starts it by itself")
    follow.add_argument("place", type=Path, metavar="RUN", help="a run directory")
    follow.add_argument("replica", metavar="NAME", help="the tracker")
    follow.add_argument("--parent", type=int, help="the process that trains; it is waited for")
    follow.add_argument("--ended", action="store_true", help="as for sync")
    _takes_wait(follow)
    follow.set_defaults(run=_follow)
    return parser


def _takes_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", type=Path, nargs="+", metavar="RUN|FOLDER", help="run directories, or folders of them")


def _takes_wait(parser: argparse.ArgumentParser) -> None:
    text = f"seconds without anything being taken after which a tracker is given up; {DRAIN_S:g} at first"
    parser.add_argument("--wait-s", type=float, default=DRAIN_S, metavar="SECONDS", help=text)


def _status(given: argparse.Namespace) -> int:
    is_behind = False
    for run in _runs(given.place):
        terminal.say(f"{run.info.run_dir}  {run.phase}")
        for replica in replicas(run):
            left = replica.left(run)
            is_behind |= left.is_behind
            terminal.say(f"  {_described(replica.name, replica.cursor(run), left)}")
    return int(is_behind)


def _sync(given: argparse.Namespace) -> int:
    runs = list(_runs(given.place))
    results = [_sent(run, replica, given) for run in runs for replica in replicas(run)]
    if not results:
        terminal.say("nothing is tracked there")
    return int(not all(results))


def _export(given: argparse.Namespace) -> int:
    place: Path = given.place
    is_neptune = place.is_file() or (place.is_dir() and not (place / METRICS_FILE).is_file() and _holds_neptune(place))
    if not is_neptune and not (place / METRICS_FILE).is_file():
        raise ConfigError(f"{place}: it holds no {METRICS_FILE}, so it is no run directory")
    names = [name for name in given.to if not (is_neptune and name == _JSONL)]
    if _JSONL in names:
        raise ConfigError(f"--to: {place / METRICS_FILE} is there already")
    if given.into is not None and not is_neptune:
        raise ConfigError(f"--into: {place} is a run directory, so none is made")
    if problems := wiring.check_names(names):
        raise ConfigError([problem.replace("report_to", "--to") for problem in problems])
    if off := wiring.switched_off(names):
        raise ConfigError([f"--to: {line}" for line in off])
    if wrong := [name for name in names if not wiring.tracker_names([name])]:
        raise ConfigError(f"--to: {wrong[0]} is no tracker")
    run = _exportable(_from_neptune(place, given.into) if is_neptune else place)
    results = [_sent(run, exported(run, name), given) for name in names]
    return int(not all(results))


def _forget(given: argparse.Namespace) -> int:
    run = journal.read_run(given.place)
    if run is None:
        raise ConfigError(f"{given.place}: nothing is tracked there")
    known = {replica.name: replica for replica in replicas(run)}
    if wrong := [name for name in given.replica if name not in known]:
        raise ConfigError(f"NAME: {wrong[0]}: the run has {', '.join(known) or 'no tracker'}")
    if own := [name for name in given.replica if name in run.trackers]:
        again = "ask for the run again with a report_to without it, and then forget it"
        raise ConfigError(f"NAME: {own[0]} is a tracker of the run's own: {again}")
    for name in dict.fromkeys(given.replica):
        if not known[name].remove():
            raise ConfigError(f"NAME: {name}: its follower is at work; try again when it has ended")
        terminal.field(name, "forgotten; what it has stays there")
    return 0


def _holds_neptune(folder: Path) -> bool:
    return any(folder.rglob(_NEPTUNE))


def _from_neptune(place: Path, into: Path | None) -> Path:
    """A run directory of what Neptune's client wrote."""
    found = wiring.recorded_run(place)
    run_dir = into or Path("runs") / journal.plain(found.run_id)
    as_run_directory(found, run_dir)
    return run_dir


def _exportable(run_dir: Path) -> TrackedRun:
    """The run as it was tracked, or as its files describe it where it never was."""
    from crucible_train.stages.tracked import described  # noqa: PLC0415 - a follower has no use for what it imports

    return described(run_dir)


def _follow(given: argparse.Namespace) -> int:
    if given.parent is not None:
        give_way()
    replica = Replica(given.place, given.replica)
    if not replica.cursor_path.parent.is_dir():
        raise ConfigError(f"{given.place}: nothing is tracked there")
    with files.held(replica.cursor_path.parent):
        return _followed(replica, given)


def give_way() -> None:
    """Leave the processor to whoever trains: importing a client alone costs seconds of it."""
    try:  # put aside at once when another wakes, which a nice process is not
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # another system, or a sandbox that knows no such priority
        os.nice(19)


def _followed(replica: Replica, given: argparse.Namespace) -> int:
    """Send what a replica lacks, when nobody else does."""
    lock, started = replica.lock(), time.monotonic()
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            is_needed = given.parent is not None and os.getppid() == given.parent
            if not is_needed and time.monotonic() > started + _LOCK_S:
                return 0  # another process is at it
            time.sleep(_LOOK_EVERY_S)
    with lock:
        run = journal.read_run(replica.run_dir)
        if run is not None and replica.name not in [one.name for one in replicas(run)]:
            return 0  # forgotten meanwhile
        left = replica.left(run) if run is not None else None
        if given.parent is None and left is not None and not left.is_behind and not (given.ended and left.num_held):
            return 0  # another process was at it
        follower = Follower(replica, wiring.tracker, parent=given.parent, drain_s=given.wait_s, is_ended=given.ended)
        follower.watch()
        cursor = follower.follow()
    return 0 if cursor.state in ("done", "left") and not cursor.left_out else 1


def _sent(run: TrackedRun, replica: Replica, given: argparse.Namespace) -> bool:
    """Send what a replica lacks and say what was sent; whether it has everything now."""
    before, left = replica.cursor(run), replica.left(run)
    is_held = bool(left.num_held and given.ended)
    if replica.is_at_work():
        terminal.field(replica.name, f"{run.info.run_dir.name}: its follower is at work; left to it")
        return not left.is_behind
    if left.is_behind or is_held:
        words = ["--wait-s", str(given.wait_s), *(["--ended"] if given.ended else [])]
        wiring.start_follower(run.info.run_dir, replica.name, *words).wait()
    after, left = replica.cursor(run), replica.left(run)
    terminal.field(replica.name, f"{run.info.run_dir.name}: {_change(before, after)}")
    terminal.field("", _described(replica.name, after, left))
    return not left.is_behind


def _change(before: Cursor, after: Cursor) -> str:
    num_events = after.num_events - len(after.left_out) - before.num_events + len(before.left_out)
    steps = f"steps {before.last_step + 1} to {after.last_step}" if after.last_step > before.last_step else ""
    events = f"{num_events} event{'s' if num_events > 1 else ''}" if num_events else ""
    return f"sent {' and '.join(filter(None, (steps, events)))}" if steps or events else "nothing was sent"


def _described(name: str, cursor: Cursor, left: Left) -> str:
    left_out = f"not taken: {' | '.join(one.why for one in cursor.left_out)}" if cursor.left_out else ""
    parts = [f"{name}: {f'lacks {left.text}' if left.is_behind else 'has everything'}"]
    if left.num_held:
        parts.append("the newest step is held back until the run goes on; sync --ended sends it where nobody trains it")
    parts += [part for part in (cursor.problem, left_out, cursor.url) if part]
    return "; ".join(parts)


def _runs(places: Sequence[Path]) -> Iterator[TrackedRun]:
    """The tracked runs at or under these places.

    Raises:
        ConfigError: a place is no folder.
    """
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"{place}: there is no such folder")
        here = journal.read_run(place)
        if here is not None:
            yield here
            continue
        yield from (run for path in sorted(place.iterdir()) if (run := journal.read_run(path)) is not None)
