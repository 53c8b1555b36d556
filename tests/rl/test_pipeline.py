"""When problems are played: in which order, how far ahead, and what is kept of it."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from crucible_train import files
from crucible_train.errors import CheckpointError
from crucible_train.rl.config import ScheduleConfig
from crucible_train.rl.environment import TrajectoryGroup
from crucible_train.rl.pipeline import Pipeline
from tests.rl.made import episode, turn

SCHEDULES = [
    ScheduleConfig(mode="synchronous"),
    ScheduleConfig(mode="off_policy", max_steps_off_policy=1),
    ScheduleConfig(mode="off_policy", max_steps_off_policy=2),
    ScheduleConfig(mode="streamed", num_minibatches=2),
]
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda one: f"{one.mode}-{one.max_steps_off_policy}"
)
SIZE = 4


def together(_num_problems: int) -> Any:
    """No model samples here."""


@dataclass
class Table:
    """Plays problems, at once or when it is told to, and keeps account."""

    is_open: bool = True
    given_up: frozenset[int] = frozenset()
    fails: frozenset[int] = frozenset()
    begun: list[int] = field(default_factory=list)
    played: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    doors: dict[int, asyncio.Event] = field(default_factory=dict)
    step: int = 0

    async def play(self, index: int, _client: Any) -> TrajectoryGroup | None:
        self.begun.append(index)
        policy_step = self.step
        try:
            if self.is_open:
                for _ in range(index * 7 % 5):  # the later ones often end earlier
                    await asyncio.sleep(0)
            else:
                await self.doors.setdefault(index, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.append(index)
            raise
        self.played.append(index)
        if index in self.fails:
            raise RuntimeError(f"problem {index} fails")
        made = episode(turn([1, index], [2], policy_step=policy_step))
        return None if index in self.given_up else TrajectoryGroup(str(index), (made,), (0.0,))

    def finish(self, *indices: int) -> None:
        for index in indices:
            self.doors.setdefault(index, asyncio.Event()).set()


async def settled() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def names(groups: Any) -> list[int]:
    return [int(group.problem) for group in groups]


def staleness(groups: Any, step: int) -> list[int]:
    return [step - group.trajectories_G[0].transitions[0].policy_step for group in groups]


async def take_steps(pipeline: Pipeline, table: Table, first: int, num_steps: int, last: int) -> list[list[int]]:
    """What each step is trained on, where all is well."""
    trained = []
    for step in range(first, first + num_steps):
        await pipeline.look_ahead(last - step)
        groups = [group async for part in pipeline.parts() for group in part]
        trained.append(names(groups))
        ahead = pipeline._num_ahead
        assert all(0 <= one <= ahead for one in staleness(groups, step))
        if step >= ahead:
            assert staleness(groups, step) == [ahead] * len(groups), "the bound is reached"
        await settled()
        pipeline.finish_step()
        table.step = step + 1
    return trained


@every_schedule
def test_each_problem_is_trained_on_once_in_order_whatever_ends_first(schedule: ScheduleConfig):
    table = Table()

    async def run() -> list[list[int]]:
        async with Pipeline(table.play, schedule, SIZE, together) as pipeline:
            return await take_steps(pipeline, table, 0, 6, 6)

    assert asyncio.run(run()) == [[*range(step * SIZE, (step + 1) * SIZE)] for step in range(6)]
    assert sorted(table.begun) == [*range(24)], "nothing is played twice, nothing that is never trained on"
    assert table.played != sorted(table.played)


@pytest.mark.parametrize("ahead", [1, 3])
def test_off_policy_plays_as_far_ahead_as_it_may_and_no_farther(ahead: int):
    table = Table(is_open=False)
    schedule = ScheduleConfig(mode="off_policy", max_steps_off_policy=ahead)

    async def run() -> None:
        async with Pipeline(table.play, schedule, SIZE, together) as pipeline:
            for step in range(3):
                await pipeline.look_ahead(100)
                await settled()
                assert sorted(table.begun) == [*range((step + 1 + ahead) * SIZE)]
                table.finish(*range(step * SIZE, (step + 1) * SIZE))
                await pipeline.take(SIZE)
                await settled()
                assert len(table.begun) == (step + 1 + ahead) * SIZE, "more is begun only by the next step"
                pipeline.finish_step()

    asyncio.run(run())
    assert sorted(table.cancelled) == [*range(3 * SIZE, (3 + ahead) * SIZE)]


@pytest.mark.parametrize("mode", ["synchronous", "streamed"])
def test_on_policy_nothing_is_played_ahead(mode: Any):
    table = Table()

    async def run() -> None:
        async with Pipeline(table.play, ScheduleConfig(mode=mode), SIZE, together) as pipeline:
            for step in range(3):
                await pipeline.look_ahead(100)
                await settled()
                assert len(table.begun) == (step + 1) * SIZE
                _ = [part async for part in pipeline.parts()]
                pipeline.finish_step()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("num_parts", "expected"),
    [(1, [[0, 1, 2, 3, 4, 5]]), (4, [[0], [1, 2], [3], [4, 5]]), (9, [[i] for i in range(6)])],
)
def test_streamed_parts_come_as_they_finish(num_parts: int, expected: list[list[int]]):
    table = Table(is_open=False)

    async def run() -> None:
        async with Pipeline(
            table.play, ScheduleConfig(mode="streamed", num_minibatches=num_parts), 6, together
        ) as pipeline:
            parts = aiter(pipeline.parts())
            for part in expected:
                coming = asyncio.ensure_future(anext(parts))
                await settled()
                assert len(table.begun) == 6, "all are played from the beginning"
                assert not coming.done()
                table.finish(*part[:-1])
                await settled()
                assert not coming.done()
                table.finish(part[-1])
                assert names(await coming) == part
            assert await anext(parts, None) is None

    asyncio.run(run())


def test_groups_that_were_given_up_are_missing_and_not_played_again():
    table = Table(given_up=frozenset({1, 4, 5, 6, 7}))

    async def run() -> list[list[int]]:
        async with Pipeline(table.play, SCHEDULES[0], SIZE, together) as pipeline:
            found = []
            for _ in range(3):
                found.append(names(await pipeline.take(SIZE)))
                pipeline.finish_step()
            return found

    assert asyncio.run(run()) == [[0, 2, 3], [], [8, 9, 10, 11]]
    assert sorted(table.begun) == [*range(12)]


def test_more_may_be_taken_for_a_step_and_the_next_begins_after_that():
    table = Table()

    async def run() -> None:
        async with Pipeline(table.play, SCHEDULES[1], SIZE, together) as pipeline:
            await pipeline.look_ahead(9)
            assert names(await pipeline.take(SIZE)) == [0, 1, 2, 3]
            assert names(await pipeline.take(2)) == [4, 5]
            assert pipeline.to_json()["next_problem"] == 0, "the step is not done"
            pipeline.finish_step()
            assert pipeline.to_json()["next_problem"] == 6
            await pipeline.look_ahead(9)
            assert names(await pipeline.take(SIZE)) == [6, 7, 8, 9]

    asyncio.run(run())
    assert sorted(table.begun) == [*range(14)]


@every_schedule
def test_cancelled_while_it_waits_it_leaves_nothing_behind(schedule: ScheduleConfig):
    table = Table(is_open=False)

    async def steps() -> None:
        async with Pipeline(table.play, schedule, SIZE, together) as pipeline:
            await take_steps(pipeline, table, 0, 6, 6)

    async def run() -> set[Any]:
        task = asyncio.create_task(steps())
        await settled()
        table.finish(0, 2)
        await settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
    assert table.played == [0, 2]
    assert sorted(table.cancelled) == sorted({*table.begun} - {0, 2})


@pytest.mark.parametrize("wait", ["take", "parts", "settle"])
def test_a_game_that_fails_is_raised_at_once_and_the_others_are_cancelled(wait: str):
    table = Table(is_open=False, fails=frozenset({2}))

    async def waited() -> None:
        async with Pipeline(table.play, SCHEDULES[1], SIZE, together) as pipeline:
            await pipeline.look_ahead(9)
            asyncio.get_running_loop().call_soon(table.finish, 2)
            if wait == "parts":
                await anext(pipeline.parts())
            else:
                await (pipeline.take(SIZE) if wait == "take" else pipeline.settle())

    async def run() -> set[Any]:
        with pytest.raises(RuntimeError, match="problem 2 fails"):
            await waited()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
    assert sorted(table.cancelled) == [0, 1, 3, 4, 5, 6, 7], "problem 0 never ended, and was not waited for"


def test_settling_waits_for_all_and_a_cancellation_of_it_stops_no_game():
    table = Table(is_open=False)

    async def run() -> None:
        async with Pipeline(table.play, SCHEDULES[1], SIZE, together) as pipeline:
            await pipeline.settle()
            await pipeline.look_ahead(9)
            waiting = asyncio.create_task(pipeline.settle())
            await settled()
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            waiting = asyncio.create_task(pipeline.settle())
            table.finish(*range(7))
            await settled()
            assert not waiting.done()
            table.finish(7)
            await waiting
            assert len(pipeline.to_json()["played"]) == 8

    asyncio.run(run())
    assert table.cancelled == []


def test_stopping_keeps_what_is_finished():
    table = Table(is_open=False)

    async def run() -> dict[str, Any]:
        async with Pipeline(table.play, SCHEDULES[1], SIZE, together) as pipeline:
            await pipeline.look_ahead(9)
            await settled()
            table.finish(1, 6)
            await settled()
            pipeline.stop()
            await settled()
            return pipeline.to_json()

    assert [*asyncio.run(run())["played"]] == ["1", "6"]
    assert sorted(table.cancelled) == [0, 2, 3, 4, 5, 7]


def stops(num_steps: int) -> list[tuple[int, str]]:
    return [(step, where) for step in range(num_steps) for where in ("before", "begun", "some", "taken", "done")]


@every_schedule
@pytest.mark.parametrize(("step", "where"), stops(3))
def test_going_on_from_any_point_neither_loses_nor_repeats_a_problem(schedule: ScheduleConfig, step: int, where: str):
    """What a step before the stop was trained on counts only where the step was done."""
    first, second = Table(), Table()

    async def stopped() -> tuple[list[list[int]], str]:
        async with Pipeline(first.play, schedule, SIZE, together) as pipeline:
            trained = await take_steps(pipeline, first, 0, step, 6)
            if where != "before":
                await pipeline.look_ahead(6 - step)
            if where == "some":
                await settled()
                await pipeline.take(2)
            if where in ("taken", "done"):
                parts = [part async for part in pipeline.parts()]
            if where == "done":
                pipeline.finish_step()
                trained.append([number for part in parts for number in names(part)])
            return trained, files.canonical_json(pipeline.to_json())

    async def gone_on(num_done: int, kept: Any) -> list[list[int]]:
        async with Pipeline(second.play, schedule, SIZE, together) as pipeline:
            pipeline.restore(kept)
            assert pipeline.to_json() == kept
            trained = []
            for now in range(num_done, 6):
                await pipeline.look_ahead(6 - now)
                trained.append([number async for part in pipeline.parts() for number in names(part)])
                pipeline.finish_step()
            return trained

    trained, text = asyncio.run(stopped())
    kept = files.parse_json(text)
    trained += asyncio.run(gone_on(len(trained), kept))
    assert trained == [[*range(one * SIZE, (one + 1) * SIZE)] for one in range(6)]
    finished = {int(index) for index in kept["played"]}
    assert not finished & {*second.begun}, "what was played ahead is not played again"
    assert schedule.mode == "off_policy" or not finished, "on policy the batch is played again as a whole"
    assert {*range(kept["next_problem"], 24)} == finished | {*second.begun}


def test_a_group_that_was_given_up_stays_given_up():
    table, again = Table(given_up=frozenset({1})), Table()

    async def run() -> list[int]:
        async with Pipeline(table.play, SCHEDULES[1], SIZE, together) as pipeline:
            await pipeline.look_ahead(1)
            await pipeline.settle()
            kept = files.parse_json(files.canonical_json(pipeline.to_json()))
        assert kept["played"]["1"] is None
        async with Pipeline(again.play, SCHEDULES[1], SIZE, together) as pipeline:
            pipeline.restore(kept)
            return names(await pipeline.take(SIZE))

    assert asyncio.run(run()) == [0, 2, 3]
    assert again.begun == []


def test_what_is_being_played_or_failed_is_not_kept():
    table = Table(is_open=False, fails=frozenset({1}))

    async def run() -> Any:
        async with Pipeline(table.play, SCHEDULES[1], SIZE, together) as pipeline:
            await pipeline.look_ahead(9)
            table.finish(1, 3)
            await settled()
            return pipeline.to_json()

    assert [*asyncio.run(run())["played"]] == ["3"]


@pytest.mark.parametrize(
    "kept", [{}, {"next_problem": 1}, {"next_problem": "x", "played": {}}, {"next_problem": 1, "played": {"x": None}},
             {"next_problem": 1, "played": [1]}, {"next_problem": 1, "played": {"1": {}}}, None]
)  # fmt: skip
def test_what_cannot_be_read_is_refused(kept: Any):
    async def run() -> None:
        async with Pipeline(Table().play, SCHEDULES[0], SIZE, together) as pipeline:
            with pytest.raises(CheckpointError, match="the checkpoint's rollouts cannot be read"):
                pipeline.restore(kept)

    asyncio.run(run())
