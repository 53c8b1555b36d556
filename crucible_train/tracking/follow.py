"""Sending a run to one tracker, from its files: in a process of its own, while the run goes on or afterwards.

    metrics.jsonl, timings.jsonl ─┐
    tracking/events.jsonl ────────┴─ steps and events in order ── tracker ── flush ── cursor

Exactly once, in any order of kills: a step is sent when nothing can be added to it, a tracker says when it is opened
what it already holds, and the cursor moves when a flush has made what was sent safe. After a failure the tracker is
opened anew, so that what was on its way is not sent twice.
"""

import contextlib
import errno
import math
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.config.redaction import hide_in_failure
from crucible_train.cursor import Cursor, LeftOut, State, write_cursor
from crucible_train.errors import ConfigError
from crucible_train.journal import FOLDER, TrackedRun, read_run
from crucible_train.ports import LoggedArtifact, LoggerUnavailable, MetricsLogger, RunStatus
from crucible_train.tracking.backoff import LONGEST_S, Backoff
from crucible_train.tracking.replica import Replica, named
from crucible_train.tracking.tail import EventFeed, Step, StepFeed

DRAIN_S = 60.0
"""How long a follower whose run has ended, or whose trainer is gone, goes on without anything being taken."""
_SEND_EVERY_S = 1.0
"""While the run is trained: what a server does with a request may be done on the cores that train."""
_LOOK_EVERY_S = 0.2
_PARTS_A_FLUSH = 200
"""Steps and events."""
_NUM_REFUSALS = 3
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_NO_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_STATUS: Mapping[str, RunStatus] = {"done": "done", "failed": "failed"}
"""How a run has ended, by its phase; one that stands at any other was interrupted."""


class Follower:
    """Sends a run to a tracker until the run has ended or nothing more can be done."""

    def __init__(
        self,
        replica: Replica,
        make: Callable[[str], MetricsLogger],
        *,
        parent: int | None = None,
        drain_s: float = DRAIN_S,
        is_ended: bool = False,
    ) -> None:
        """Prepare to send.

        Args:
            replica: the run and the tracker's name.
            make: makes the logger of a tracker's name.
            parent: the training process; None where there is none to wait for.
            drain_s: seconds without progress after which it gives up once the run has ended.
            is_ended: whether a run that broke off is taken to be over, so that its newest step is sent too.
        """
        self._replica, self._make, self._parent = replica, make, parent
        self._drain_s, self._is_ended = drain_s, is_ended
        self._backoff, self._num_refusals = Backoff(), 0
        self._num_failures: Counter[int] = Counter()
        self._retried: set[int] = set()
        self._upload_s = 0.0
        self._flush_every_s = 0.0
        self._is_careful = False
        self._steps, self._events = StepFeed(replica.run_dir), EventFeed(replica.run_dir)
        self._progress_at = time.monotonic()
        self._ended_at: float | None = None
        self._cursor = self._reached = replica.cursor(self._run())
        self._num_unsafe = 0

    def follow(self) -> Cursor:
        """Send; how far it came. The caller holds the replica's lock."""
        while True:
            logger: MetricsLogger | None = None
            was_trained = self._goes_on()
            try:
                logger = self._make(self._cursor.tracker)
                self._send_all(logger)
            except LoggerUnavailable as error:
                state, text, wait_s = "unavailable", str(error), error.retry_after_s
            except OSError as error:
                if error.errno not in _FULL:
                    self._count_refusal(error)
                state, text, wait_s = "unavailable", f"{error.strerror or error}", None
            except Exception as error:  # noqa: BLE001 - whatever a client raises is told, and tried again a few times
                self._count_refusal(error)
                self._is_careful = True
                state, text, wait_s = "refused", f"{type(error).__name__}: {error}", None
            else:
                return self._cursor
            self._note(state, text)  # type: ignore[arg-type]
            is_hopeless = self._num_refusals >= _NUM_REFUSALS
            if is_hopeless and not was_trained:
                return self._cursor
            seconds = LONGEST_S if is_hopeless else self._backoff.next_s(wait_s)
            if not self._sleep(seconds, is_wish=wait_s is not None, was_trained=was_trained):
                return self._cursor

    def watch(self) -> None:
        """End this process when a call to the tracker does not come back though there is nothing left to wait for."""

        def look() -> None:
            while True:
                time.sleep(_LOOK_EVERY_S)
                self._look_for_end()
                if self._seconds_left() < -_LOOK_EVERY_S:
                    self._note("unavailable", "it does not answer")
                    os._exit(3)

        threading.Thread(target=look, name="watchdog", daemon=True).start()

    def _send_all(self, logger: MetricsLogger) -> None:
        run = named(self._run(), self._cursor)
        opened = logger.start(run.info)
        # the tracker knows better than the cursor: a file that was torn holds nothing and gets everything again
        has_lost = opened.is_new or opened.last_step < self._cursor.last_step
        num_events = 0 if has_lost else self._cursor.num_events
        self._open_feeds()
        left_out = tuple(one for one in self._cursor.left_out if one.number < num_events)
        held = replace(self._cursor, last_step=opened.last_step, num_events=num_events, left_out=left_out)
        url = opened.url or held.url
        self._save(replace(held, url=hide_in_failure(url, os.environ) if url else None, state="sending"))
        self._flush_every_s = getattr(logger, "flush_every_s", 0.0)
        sent_at = -math.inf
        while True:
            run = self._run()
            is_orphan = not self._is_parent_there()
            is_whole = run.has_all_steps or (self._is_ended and is_orphan and not self._is_trained_now(run))
            goes_on = run.phase == "training" and not is_orphan
            if goes_on and time.monotonic() < sent_at + max(_SEND_EVERY_S, self._flush_every_s):
                time.sleep(_LOOK_EVERY_S)
                continue
            if self._send(logger, is_whole=is_whole):
                sent_at = time.monotonic()
                continue
            if run.has_ended or is_orphan:
                self._send_left_out(logger)
                logger.finish(_STATUS.get(run.phase, "interrupted"))
                self._save(replace(self._cursor, state="done" if run.phase == "done" else "left"))
                return
            time.sleep(_LOOK_EVERY_S)

    def _open_feeds(self) -> None:
        """Read the run's files from their start: what a tracker holds may be less than what was sent before."""
        self._steps.close()
        self._events.close()
        self._steps, self._events = StepFeed(self._replica.run_dir), EventFeed(self._replica.run_dir)

    def _send(self, logger: MetricsLogger, *, is_whole: bool) -> bool:
        """Send what is there; whether anything was."""
        steps = self._steps.read(self._cursor.last_step, is_whole=is_whole)
        events = self._events.read(self._cursor.num_events)
        self._reached, self._num_unsafe = self._cursor, 0
        place = num_sent = 0
        while True:
            step = steps[place] if place < len(steps) else None
            event = events[num_sent] if num_sent < len(events) else None
            if event is not None and _is_due(event, step, self._reached.last_step, is_whole=is_whole):
                self._send_event(logger, event)
                num_sent += 1
            elif step is not None:
                logger.log_metrics(step[1], step[0])
                self._reached = replace(self._reached, last_step=step[0])
                self._num_unsafe += 1
                place += 1
            else:
                break
            if self._num_unsafe >= _PARTS_A_FLUSH:
                self._make_safe(logger)
        self._make_safe(logger)
        return place + num_sent > 0

    def _make_safe(self, logger: MetricsLogger) -> None:
        if self._num_unsafe:
            logger.flush()
            self._note_safe()

    def _note_safe(self) -> None:
        self._advance(replace(self._reached, problem=None))
        self._num_unsafe = 0

    def _send_event(self, logger: MetricsLogger, event: Mapping[str, Any]) -> None:
        """Send one event. One that the tracker does not take is left out, and told of.

        It gets a flush of its own where that is cheap, or where one is refused and it is to be known which.
        """
        is_by_itself = not self._flush_every_s or self._is_careful
        if is_by_itself:
            self._make_safe(logger)
        number, left_out = self._reached.num_events, self._reached.left_out
        why = self._tried(logger, number, event, flushes=is_by_itself)
        if why is not None:
            left_out = (*left_out, LeftOut(number, why))
        self._reached = replace(self._reached, num_events=number + 1, left_out=left_out)
        self._num_unsafe += 1
        self._progress_at = time.monotonic()
        if is_by_itself:
            self._note_safe()

    def _send_left_out(self, logger: MetricsLogger) -> None:
        """Try once more, in this process, what the tracker did not take before."""
        events = self._events.read(0)
        for one in self._cursor.left_out:
            if one.number not in self._retried and one.number < len(events):
                why = self._tried(logger, one.number, events[one.number], flushes=True)
                self._retried.add(one.number)
                still = {other for other in self._cursor.left_out if other.number != one.number}
                still |= set() if why is None else {LeftOut(one.number, why)}
                self._advance(replace(self._cursor, left_out=tuple(sorted(still))))

    def _tried(self, logger: MetricsLogger, number: int, event: Mapping[str, Any], *, flushes: bool) -> str | None:
        """Send an event; why it is to be left out, where it is and not the tracker that fails, and it always does."""
        try:
            if event["event"] == "artifact":
                self._upload_s = _artifact(event, self._replica.run_dir).upload_s
            log_event(logger, event, self._replica.run_dir)
            if flushes:
                logger.flush()
        except Exception as error:  # a client may raise anything; the rest of the run still goes out
            if not self._is_its_own(error, number):
                raise
            print_failure(error)
            return _line(f"{event['event']} {event.get('name', '')}: {type(error).__name__}: {error}")
        return None

    def _is_its_own(self, error: Exception, number: int) -> bool:
        """Whether an event has failed by itself as often as anything may."""
        if isinstance(error, LoggerUnavailable):
            return False
        if isinstance(error, OSError):
            if error.errno in _FULL or (error.filename is None and not isinstance(error, _NO_FILE)):
                return False
            if isinstance(error, _NO_FILE) and error.filename is not None:
                return True
        self._num_failures[number] += 1
        return self._num_failures[number] >= _NUM_REFUSALS

    def _advance(self, cursor: Cursor) -> None:
        self._save(replace(cursor, state="sending"))
        self._progress_at = time.monotonic()
        self._num_refusals, self._upload_s = 0, 0.0
        self._backoff.reset()

    def _count_refusal(self, error: Exception) -> None:
        self._num_refusals += 1
        if self._num_refusals <= _NUM_REFUSALS:  # what comes after that is the same
            print_failure(error)

    def _note(self, state: State, problem: str) -> None:
        try:
            self._save(replace(self._cursor, state=state, problem=_line(problem)))
        except OSError as error:  # the disk of the run is full: it goes on with what it remembers
            print_failure(error)

    def _save(self, cursor: Cursor) -> None:
        self._cursor = cursor  # what was sent is sent, even where that cannot be written down
        write_cursor(self._replica.cursor_path, cursor)

    def _run(self) -> TrackedRun:
        run = read_run(self._replica.run_dir)
        if run is None:
            raise ConfigError(f"{self._replica.run_dir}: nothing is tracked there")
        return run

    def _is_parent_there(self) -> bool:
        return self._parent is not None and os.getppid() == self._parent

    def _is_trained_now(self, run: TrackedRun) -> bool:
        """Whether some process trains the run, and may add to its newest step."""
        return run.phase == "training" and files.is_held(run.info.run_dir)

    def _goes_on(self) -> bool:
        """Whether the run is being trained by the process that it waits for."""
        run = read_run(self._replica.run_dir)
        return run is not None and run.phase == "training" and self._is_parent_there()

    def _look_for_end(self) -> None:
        if self._ended_at is None:
            run = read_run(self._replica.run_dir)
            if run is None or run.has_ended or not self._is_parent_there():
                self._ended_at = time.monotonic()

    def _seconds_left(self) -> float:
        """Seconds until it gives up, with those that files which are being sent may take; without end in training."""
        if self._ended_at is None:
            return float("inf")
        return max(self._ended_at, self._progress_at) + self._drain_s + self._upload_s - time.monotonic()

    def _sleep(self, seconds: float, *, is_wish: bool, was_trained: bool) -> bool:
        """Wait; False, at once where it is known, if there is no use in trying again after that.

        The end of a run that ``was_trained`` when it was tried cuts it short, unless the service wished for it.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._look_for_end()
            if was_trained and self._ended_at is not None and not is_wish:
                return True
            if self._seconds_left() < left:
                return False
            time.sleep(min(left, _LOOK_EVERY_S))
        return True


def log_event(logger: MetricsLogger, event: Mapping[str, Any], run_dir: Path) -> None:
    """Tell a logger of one event of a journal.

    Raises:
        ValueError: there is no such event.
    """
    values = {key: value for key, value in event.items() if key not in ("id", "event")}
    match event["event"]:
        case "hparams":
            logger.log_hparams(values["values"])
        case "metrics":
            logger.log_metrics(values["values"], values["step"])
        case "text":
            logger.log_text(**values)
        case "table":
            logger.log_table(**values)
        case "image":
            logger.log_image(values["name"], run_dir / FOLDER / values["file"], values["step"])
        case "artifact":
            logger.log_artifact(_artifact(event, run_dir))
        case "link":
            logger.link(**values)
        case what:
            raise ValueError(f"event {what!r} is unknown")


def _artifact(event: Mapping[str, Any], run_dir: Path) -> LoggedArtifact:
    values = {key: value for key, value in event.items() if key not in ("id", "event")}
    path = run_dir / values["path"] if values["path"] else None  # one outside of the run's folder is absolute
    return LoggedArtifact(**{**values, "path": path})


def _is_due(event: Mapping[str, Any], step: Step | None, newest: int, *, is_whole: bool) -> bool:
    """Whether an event is to be sent before the next step: trackers want steps that never fall."""
    at = event.get("step")
    if at is None:
        return True
    if step is not None:
        return bool(at < step[0])
    return is_whole or bool(at <= newest)


def print_failure(error: Exception) -> None:
    """Show a failure in the follower's log, without secrets; a log that cannot be written stops nothing."""
    with contextlib.suppress(OSError):
        sys.stderr.write(hide_in_failure("".join(traceback.format_exception(error)), os.environ))
        sys.stderr.flush()


def _line(text: str) -> str:
    return " ".join(hide_in_failure(text, os.environ).split())[:300]
