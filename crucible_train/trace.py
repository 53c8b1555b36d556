"""A timeline of a run's phases, as a trace that ui.perfetto.dev and chrome://tracing open.

The format is Chrome's trace event format: complete events (``ph`` X) with times in microseconds, and metadata events
(``ph`` M) that name the tracks. Within one track of that format events must nest; spans that overlap without nesting,
as those of tasks that run at once do, are therefore laid on lanes of their own: ``rollout``, ``rollout 2`` and so on.
"""

import asyncio
import json
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any

from crucible_train import files

_PROCESS = 1
_NAME = "crucible_train"


@dataclass(frozen=True, slots=True)
class _Event:
    """A span that ended. Times in nanoseconds since the trace began; ``flow`` is the thread and task it ran in."""

    name: str
    track: str
    start: int
    end: int
    flow: tuple[int, int]
    values: Mapping[str, Any]


class Trace:
    """Collects spans from any thread and task.

    Args:
        max_events: spans that are kept; later ones are counted and left out.
        clock: gives nanoseconds that never go back.
    """

    def __init__(self, max_events: int = 200_000, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Begin now."""
        self._clock = clock
        self._began = clock()
        self._max_events = max_events
        self._events: list[_Event] = []
        self._num_dropped = 0
        self._dropping = threading.Lock()

    def span(self, name: str, track: str = "main", **values: str | float | bool | None) -> "Span":
        """A context that becomes one bar of the timeline; ``values`` are shown beside it."""
        return Span(self, name, track, values)

    def to_json(self) -> dict[str, Any]:
        """What has ended so far, as trace events; spans that still run are not among them."""
        lanes = _lanes(list(self._events))
        named = [_metadata("process_name", 0, name=_NAME)]
        events = []
        for number, (lane, spans) in enumerate(lanes, start=1):
            named += [_metadata("thread_name", number, name=lane)]
            named += [_metadata("thread_sort_index", number, sort_index=number)]
            events += [_complete(span, number) for span in spans]
        return {
            "traceEvents": named + sorted(events, key=lambda event: (event["ts"], -event["dur"])),
            "displayTimeUnit": "ms",
            "otherData": {"num_dropped_events": self._num_dropped},
        }

    def write(self, path: Path) -> None:
        """Write ``trace.json`` atomically."""
        files.write_text(path, json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False) + "\n")

    def _now(self) -> int:
        return self._clock() - self._began

    def _add(self, event: _Event) -> None:
        if len(self._events) < self._max_events:
            self._events.append(event)
        else:
            with self._dropping:
                self._num_dropped += 1


class Span:
    """One phase, from where the block begins to where it ends. An error that ends it is named in its values."""

    __slots__ = ("_name", "_start", "_trace", "_track", "_values")

    def __init__(self, trace: Trace, name: str, track: str, values: dict[str, Any]) -> None:
        """Begin with the block, not here."""
        self._trace, self._name, self._track, self._values = trace, name, track, values
        self._start = 0

    def __enter__(self) -> "Span":
        """Begin."""
        self._start = self._trace._now()  # noqa: SLF001 - two halves of one thing
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        end = self._trace._now()  # noqa: SLF001
        values = self._values if kind is None else self._values | {"error": kind.__name__}
        self._trace._add(_Event(self._name, self._track, self._start, end, _flow(), values))  # noqa: SLF001


def _flow() -> tuple[int, int]:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident(), 0 if task is None else id(task)


def _lanes(events: Iterable[_Event]) -> list[tuple[str, list[_Event]]]:
    """Spans by lane. In a lane, a span lies within another of its own task, or they do not touch."""
    tracks: dict[str, list[_Event]] = defaultdict(list)
    for event in events:
        tracks[event.track].append(event)
    found = []
    for track, spans in tracks.items():
        lanes: list[list[_Event]] = []
        around: list[list[_Event]] = []  # of each lane, those that still run, from outer to inner
        last: dict[tuple[int, int], int] = {}  # the lane that a task's last span is in
        for span in sorted(spans, key=lambda span: (span.start, -span.end)):
            tried = [last[span.flow]] if span.flow in last else []
            lane = next(i for i in chain(tried, count()) if i == len(lanes) or _has_room(around[i], span))
            if lane == len(lanes):
                lanes.append([])
                around.append([])
            lanes[lane].append(span)
            around[lane].append(span)
            last[span.flow] = lane
        found += [(track if i == 0 else f"{track} {i + 1}", lane) for i, lane in enumerate(lanes)]
    return found


def _has_room(running: list[_Event], span: _Event) -> bool:
    while running and running[-1].end <= span.start:
        running.pop()
    return not running or (running[-1].flow == span.flow and running[-1].end >= span.end)


def _complete(span: _Event, number: int) -> dict[str, Any]:
    event = {"name": span.name, "cat": span.track, "ph": "X", "pid": _PROCESS, "tid": number}
    times = {"ts": span.start / 1000, "dur": (span.end - span.start) / 1000}
    return event | times | {"args": {name: _shown(value) for name, value in span.values.items()}}


def _metadata(kind: str, number: int, **values: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": _PROCESS, "tid": number, "ts": 0, "args": values}


def _shown(value: Any) -> Any:
    """The value where JSON has it; else its text."""
    is_plain = (
        value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    )
    return value if is_plain else str(value)
