"""The timeline: its format, its lanes, its bounds."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_train.trace import Trace


class Clock:
    """Moves only when told to."""

    def __init__(self) -> None:
        self.now = 5_000_000

    def __call__(self) -> int:
        return self.now


def spans(trace: Trace) -> list[dict[str, Any]]:
    return [event for event in trace.to_json()["traceEvents"] if event["ph"] == "X"]


def names(trace: Trace) -> dict[int, str]:
    return {
        event["tid"]: event["args"]["name"]
        for event in trace.to_json()["traceEvents"]
        if event["name"] == "thread_name"
    }


def check_format(value: dict[str, Any]) -> None:
    """What the trace event format asks of complete and metadata events, and that the bars of a track nest."""
    assert set(value) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert value["displayTimeUnit"] in ("ms", "ns")
    tracks: dict[int, list[tuple[float, float]]] = {}
    named = set()
    for event in value["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            named |= {event["tid"]} if event["name"] == "thread_name" else set()
        else:
            assert event["ph"] == "X"
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            tracks.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    assert set(tracks) == named
    for bars in tracks.values():
        for a, b in ((a, b) for i, a in enumerate(bars) for b in bars[i + 1 :]):
            assert b[0] >= a[1] - 1e-9 or b[1] <= a[1] + 1e-9, "bars of one track overlap without nesting"


def test_a_span_is_a_bar_in_microseconds_since_the_start(tmp_path: Path) -> None:
    clock = Clock()
    trace = Trace(clock=clock)
    clock.now += 2_000
    with trace.span("step", step=3):
        with trace.span("sample", track="rollout", temperature=0.5):
            clock.now += 1_500
        clock.now += 500
    trace.write(tmp_path / "run" / "trace.json")
    value = json.loads((tmp_path / "run" / "trace.json").read_text(encoding="utf-8"))
    check_format(value)
    outer, inner = (event for event in value["traceEvents"] if event["ph"] == "X")
    assert (outer["name"], outer["ts"], outer["dur"], outer["args"]) == ("step", 2.0, 2.0, {"step": 3})
    assert (inner["name"], inner["ts"], inner["dur"], inner["cat"]) == ("sample", 2.0, 1.5, "rollout")
    assert set(names(trace).values()) == {"main", "rollout"}
    assert outer["tid"] != inner["tid"]


def test_tasks_that_run_at_once_have_lanes_of_their_own_which_are_used_again() -> None:
    clock = Clock()
    trace = Trace(clock=clock)

    async def episode(number: int, others: asyncio.Barrier) -> None:
        with trace.span("episode", track="rollout", number=number):
            await others.wait()
            with trace.span("answer", track="rollout"):
                clock.now += 1_000
                await others.wait()
            clock.now += 1_000

    async def both() -> None:
        for _ in range(2):
            others = asyncio.Barrier(2)
            await asyncio.gather(episode(0, others), episode(1, others))
            clock.now += 1_000

    asyncio.run(both())
    check_format(trace.to_json())
    assert sorted(names(trace).values()) == ["rollout", "rollout 2"]
    assert len(spans(trace)) == 8


def test_what_runs_beside_a_span_is_not_drawn_inside_it() -> None:
    clock = Clock()
    trace = Trace(clock=clock)

    def act() -> None:
        with trace.span("short", track="t"):
            clock.now += 1_000

    with trace.span("long", track="t"):
        clock.now += 1_000
        act()
        beside = threading.Thread(target=act)
        beside.start()
        beside.join()
        clock.now += 1_000
    lanes = {(event["name"], names(trace)[event["tid"]]) for event in spans(trace)}
    assert lanes == {("long", "t"), ("short", "t"), ("short", "t 2")}


def test_threads_write_at_once() -> None:
    trace = Trace()

    def work() -> None:
        for step in range(200):
            with trace.span("work", track="threads", step=step):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spans(trace)) == 800


def test_no_more_than_the_bound_is_kept_and_the_rest_is_counted() -> None:
    trace = Trace(max_events=3)
    for step in range(5):
        with trace.span("step", step=step):
            pass
    assert [event["args"]["step"] for event in spans(trace)] == [0, 1, 2]
    assert trace.to_json()["otherData"] == {"num_dropped_events": 2}


def test_an_error_ends_its_span_and_is_named() -> None:
    trace = Trace()
    with pytest.raises(KeyError), trace.span("step"):
        raise KeyError("a secret")
    (event,) = spans(trace)
    assert event["args"] == {"error": "KeyError"}


def test_values_that_json_lacks_are_text(tmp_path: Path) -> None:
    trace = Trace()
    with trace.span("step", loss=float("nan"), path=Path("x")):  # type: ignore[arg-type]
        pass
    trace.write(tmp_path / "trace.json")
    (event,) = spans(trace)
    assert event["args"] == {"loss": "nan", "path": "x"}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 20)), max_size=12))
def test_any_spans_of_any_threads_nest_in_their_lanes(planted: list[tuple[int, int, int]]) -> None:
    clock = Clock()
    trace = Trace(clock=clock)
    start = clock.now

    def act(begin: int, length: int) -> None:
        span = trace.span("s", track="t")
        clock.now = start + begin * 1000
        span.__enter__()
        clock.now += length * 1000
        span.__exit__(None, None, None)

    for _, begin, length in planted:
        thread = threading.Thread(target=act, args=(begin, length))
        thread.start()
        thread.join()
    check_format(trace.to_json())
    assert len(spans(trace)) == len(planted)
