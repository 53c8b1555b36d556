"""Sending a run to one tracker, from its files: in a process of its own, while the run goes on or afterwards.

    metrics.jsonl, timings.jsonl ─┐
    tracking/events.jsonl ────────┴─ steps and events in order ── tracker ── flush ── cursor

Exactly once, in any order of kills: a step is sent when nothing can be added to it, a tracker says when it is opened
what it already holds, and the cursor moves when a flush has made what was sent safe. After a failure the tracker is
opened anew, so that what was on its way is not sent twice.
"""

import errno
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crucible_train.config.redaction import hide_secrets
from crucible_train.errors import ConfigError
from crucible_train.journal import FOLDER, TrackedRun, read_run
from crucible_train.ports import LoggedArtifact, LoggerUnavailable, MetricsLogger, RunStatus
from crucible_train.tracking.backoff import Backoff
from crucible_train.tracking.cursor import Cursor, State, write_cursor
from crucible_train.tracking.replica import Replica, named
from crucible_train.tracking.tail import EventFeed, Step, StepFeed

DRAIN_S = 60.0
"""How long a follower whose run has ended, or whose trainer is gone, goes on without anything being taken."""
IDLE_S = 30.0
"""How long one waits for the results of a run whose last step is sent."""
_LOOK_EVERY_S = 0.2
_STEPS_A_FLUSH = 200
_NUM_REFUSALS = 3
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


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
        self._steps, self._events = StepFeed(replica.run_dir), EventFeed(replica.run_dir)
        self._progress_at = time.monotonic()
        self._ended_at: float | None = None
        self._cursor = replica.cursor(self._run())

    def follow(self) -> Cursor:
        """Send; how far it came. The caller holds the replica's lock."""
        while True:
            logger: MetricsLogger | None = None
            try:
                logger = self._make(self._cursor.tracker)
                self._send_all(logger)
            except LoggerUnavailable as error:
                state, text, wait_s = "unavailable", str(error), error.retry_after_s
            except OSError as error:
                if error.errno not in _FULL:
                    _print(error)
                    self._num_refusals += 1
                state, text, wait_s = "unavailable", f"{error.strerror or error}", None
            except Exception as error:  # noqa: BLE001 - whatever a client raises is told, and tried again a few times
                _print(error)
                self._num_refusals += 1
                state, text, wait_s = "refused", f"{type(error).__name__}: {error}", None
            else:
                return self._cursor
            self._note(state, text)  # type: ignore[arg-type]
            if self._num_refusals >= _NUM_REFUSALS or not self._sleep(self._backoff.next_s(wait_s)):
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
        num_events = self._cursor.num_events if opened.last_step >= self._cursor.last_step else 0
        self._open_feeds()
        held = replace(self._cursor, last_step=opened.last_step, num_events=num_events)
        self._save(replace(held, url=opened.url or held.url, state="sending"))
        flush_every_s: float = getattr(logger, "flush_every_s", 0.0)
        idle_since = time.monotonic()
        sent_at = -math.inf
        while True:
            run = self._run()
            is_orphan = not self._is_parent_there()
            is_whole = run.has_all_steps or (self._is_ended and is_orphan)
            goes_on = run.phase == "training" and not is_orphan
            if goes_on and time.monotonic() < sent_at + flush_every_s:
                time.sleep(_LOOK_EVERY_S)
                continue
            if self._send(logger, is_whole=is_whole):
                idle_since = sent_at = time.monotonic()
                continue
            is_idle = run.phase == "trained" and time.monotonic() - idle_since > IDLE_S
            if run.phase in ("done", "failed") or is_orphan or is_idle:
                logger.finish(_status(run, is_orphan=is_orphan))
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
        unsafe: list[Step] = []
        place = num_sent = 0
        while True:
            step = steps[place] if place < len(steps) else None
            newest = unsafe[-1][0] if unsafe else self._cursor.last_step
            event = events[num_sent] if num_sent < len(events) else None
            if event is not None and _is_due(event, step, newest, is_whole=is_whole):
                self._make_safe(logger, unsafe)
                self._send_event(logger, event)
                num_sent += 1
            elif step is not None:
                logger.log_metrics(step[1], step[0])
                unsafe.append(step)
                place += 1
                if len(unsafe) >= _STEPS_A_FLUSH:
                    self._make_safe(logger, unsafe)
            else:
                break
        self._make_safe(logger, unsafe)
        return place + num_sent > 0

    def _make_safe(self, logger: MetricsLogger, unsafe: list[Step]) -> None:
        if unsafe:
            logger.flush()
            self._advance(replace(self._cursor, last_step=unsafe[-1][0], problem=None))
            unsafe.clear()

    def _send_event(self, logger: MetricsLogger, event: Mapping[str, Any]) -> None:
        """Send one event. One that the tracker has no way to take is left out, and told of."""
        left_out = self._cursor.left_out
        try:
            log_event(logger, event, self._replica.run_dir)
            logger.flush()
        except (LoggerUnavailable, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - a client may raise anything; the rest of the run still goes out
            _print(error)
            left_out = _line(f"{event['event']} {event.get('name', '')}: {type(error).__name__}: {error}")
        num_events = self._cursor.num_events + 1
        self._advance(replace(self._cursor, num_events=num_events, problem=None, left_out=left_out))

    def _advance(self, cursor: Cursor) -> None:
        self._save(replace(cursor, state="sending"))
        self._progress_at = time.monotonic()
        self._num_refusals = 0
        self._backoff.reset()

    def _note(self, state: State, problem: str) -> None:
        self._save(replace(self._cursor, state=state, problem=_line(problem)))

    def _save(self, cursor: Cursor) -> None:
        write_cursor(self._replica.cursor_path, cursor)
        self._cursor = cursor

    def _run(self) -> TrackedRun:
        run = read_run(self._replica.run_dir)
        if run is None:
            raise ConfigError(f"{self._replica.run_dir}: nothing is tracked there")
        return run

    def _is_parent_there(self) -> bool:
        return self._parent is not None and os.getppid() == self._parent

    def _look_for_end(self) -> None:
        if self._ended_at is None and (not self._is_parent_there() or self._run().phase in ("done", "failed")):
            self._ended_at = time.monotonic()

    def _seconds_left(self) -> float:
        """Seconds until it gives up; without end while the run goes on."""
        if self._ended_at is None:
            return float("inf")
        return max(self._ended_at, self._progress_at) + self._drain_s - time.monotonic()

    def _sleep(self, seconds: float) -> bool:
        """Wait; False, at once where it is known, if there is no use in trying again after that."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._look_for_end()
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
            logger.log_artifact(_artifact(values, run_dir))
        case "link":
            logger.link(**values)
        case what:
            raise ValueError(f"event {what!r} is unknown")


def _artifact(values: Mapping[str, Any], run_dir: Path) -> LoggedArtifact:
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


def _status(run: TrackedRun, *, is_orphan: bool) -> RunStatus:
    if run.phase == "failed":
        return "failed"
    return "interrupted" if run.phase == "training" and is_orphan else "done"


def _print(error: Exception) -> None:
    """Show a failure in the follower's log, without secrets."""
    sys.stderr.write(hide_secrets("".join(traceback.format_exception(error))))


def _line(text: str) -> str:
    return hide_secrets(" ".join(text.split()))[:300]
