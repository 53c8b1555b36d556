"""Episodes in lockstep: what is asked for together follows from the episodes alone, and nobody waits for the gone."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from crucible_train.rl.environment import StopReason
from crucible_train.rl.lockstep import Lockstep, seats_of
from crucible_train.rl.message_env import MessageEnv, Reply
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.rl.rollouts import rollout
from crucible_train.types import Message, ModelInput, SamplingParams, TokensWithLogprobs
from tests.rl.conftest import Scripted

PROMPT = ModelInput.from_ints([1])


class Asked:
    """A client that answers in any order, and keeps what it was asked in the same moment."""

    def __init__(self, seed: int) -> None:
        self.moments: list[list[int]] = []
        self.fails: set[int] = set()
        self._draw = random.Random(seed)
        self._now: list[int] | None = None

    async def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> Any:
        if self._now is None:
            self._now = []
            self.moments.append(self._now)
            asyncio.get_running_loop().call_soon(self._end_moment)
        self._now.append(params.seed)
        for _ in range(self._draw.randrange(9)):
            await asyncio.sleep(0)
        if params.seed in self.fails:
            raise RuntimeError(f"no answer to {params.seed}")
        return [TokensWithLogprobs((params.seed,), (0.0,), "stop")]

    def _end_moment(self) -> None:
        self._now = None

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        return [None] * model_input.length

    async def top_logprobs(self, model_input: ModelInput, k: int) -> Any:
        return [None] * model_input.length


def params(episode: int, turn: int) -> SamplingParams:
    return SamplingParams(max_tokens=1, seed=100 * turn + episode)


async def play(seats: Any, episode: int, num_turns: int, draw: random.Random) -> list[int]:
    """An episode whose environment takes its time; it leaves when it is done."""
    heard = []
    for turn in range(num_turns):
        for _ in range(draw.randrange(9)):
            await asyncio.sleep(0)
        (answer,) = await seats.sample(PROMPT, 1, params(episode, turn))
        heard += answer.tokens
    if hasattr(seats, "leave"):
        seats.leave()
    return heard


def together(seed: int, turns: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
    async def run() -> Any:
        client, draw = Asked(seed), random.Random(seed)
        lockstep = Lockstep(client, len(turns))
        with seats_of(lockstep, 2) as left, seats_of(lockstep, len(turns) - 2) as right:
            episodes = [play(left if i < 2 else right, i, num, draw) for i, num in enumerate(turns)]
            heard = await asyncio.wait_for(asyncio.gather(*episodes), 10)
        return client.moments, heard

    return asyncio.run(run())


def test_what_is_asked_for_together_does_not_follow_from_the_clock() -> None:
    turns = [3, 1, 2, 3, 2]
    expected = [[0, 1, 2, 3, 4], [100, 102, 103, 104], [200, 203]]
    for seed in range(20):
        moments, heard = together(seed, turns)
        assert moments == expected
        assert heard == [[100 * turn + episode for turn in range(num)] for episode, num in enumerate(turns)]


def test_nobody_waits_for_seats_that_were_left() -> None:
    async def run() -> list[int]:
        lockstep = Lockstep(Asked(0), 4)
        with seats_of(lockstep, 3) as early:
            early.leave()
            assert early.num_seats == 2
        with seats_of(lockstep, 1) as only:
            return await asyncio.wait_for(play(only, 7, 2, random.Random(0)), 10)

    assert asyncio.run(run()) == [7, 107]


def test_one_who_comes_again_is_waited_for() -> None:
    async def run() -> list[list[int]]:
        client = Asked(0)
        lockstep = Lockstep(client, 2)
        with seats_of(lockstep, 2) as seats:
            seats.leave()
            seats.enter(1)
            waiting = asyncio.ensure_future(play(seats, 0, 1, random.Random(0)))
            for _ in range(50):
                await asyncio.sleep(0)
            assert client.moments == []
            await asyncio.gather(waiting, play(seats, 1, 1, random.Random(0)))
        return client.moments

    assert asyncio.run(run()) == [[0, 1]]


def test_a_failure_reaches_the_one_who_asked() -> None:
    async def run() -> list[Any]:
        client = Asked(0)
        client.fails = {1}
        lockstep = Lockstep(client, 2)
        with seats_of(lockstep, 2) as seats:
            episodes = [play(seats, episode, 1, random.Random(0)) for episode in range(2)]
            return await asyncio.gather(*episodes, return_exceptions=True)

    good, bad = asyncio.run(run())
    assert good == [0]
    assert str(bad) == "no answer to 1"


@pytest.mark.parametrize("is_asked", [False, True], ids=["waiting", "asked"])
def test_one_who_gives_up_leaves_nothing_behind(is_asked: bool) -> None:
    class Never(Asked):
        async def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> Any:
            if params.seed == 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.moments.append([-1])
                    raise
            return await super().sample(prompt, num_samples, params)

    async def run() -> list[list[int]]:
        client = Never(0)
        lockstep = Lockstep(client, 2)
        with seats_of(lockstep, 2) as seats:
            gone = asyncio.ensure_future(seats.sample(PROMPT, 1, params(1, 0)))
            other = asyncio.ensure_future(seats.sample(PROMPT, 1, params(0, 0))) if is_asked else None
            for _ in range(50):
                await asyncio.sleep(0)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            seats.leave()
            await asyncio.wait_for(other or seats.sample(PROMPT, 1, params(0, 0)), 10)
            for _ in range(10):
                await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        return client.moments

    assert asyncio.run(run()) == ([[0], [-1]] if is_asked else [[0]])


def test_a_client_without_lockstep_is_used_as_it_is() -> None:
    client = Asked(0)
    with seats_of(client, 5) as found:
        assert found is client


def test_an_environment_that_hangs_costs_the_others_nothing(smollm2: Any) -> None:
    """Waiting for others is not counted against an episode's time."""

    class Slow(MessageEnv):
        def __init__(self, renderer: Any, seconds: float) -> None:
            super().__init__(renderer)
            self._seconds = seconds

        async def first_messages(self) -> Sequence[Message]:
            return [Message("user", "go on")]

        async def reply(self, answer: Any) -> Reply:
            await asyncio.sleep(self._seconds)
            if len(self.transcript()) > 4:
                return Reply(1.0, (), StopReason.COMPLETED)
            return Reply(messages=(Message("user", "go on"),))

    async def run() -> list[StopReason]:
        client = Scripted(smollm2, lambda _: "yes")
        lockstep = Lockstep(client, 4)
        config = RolloutConfig(timeout_s=3.0)

        async def one(index: int) -> StopReason:
            env = Slow(smollm2, 60.0 if index == 2 else 0.0)
            with seats_of(lockstep, 1) as seat:
                return (await rollout(env, seat, config, index, lambda: 0, problem=str(index))).reason

        return await asyncio.wait_for(asyncio.gather(*(one(index) for index in range(4))), 30)

    done = StopReason.COMPLETED
    assert asyncio.run(run()) == [done, done, StopReason.TIMEOUT, done]


def test_the_step_of_the_weights_is_that_of_the_asking() -> None:
    async def run() -> list[int]:
        now = [0]
        lockstep = Lockstep(Asked(0), 2, lambda: now[0])
        with seats_of(lockstep, 2) as seats:
            first = asyncio.ensure_future(seats.sample(PROMPT, 1, params(0, 0)))
            await asyncio.sleep(0)
            now[0] = 5
            await asyncio.gather(first, seats.sample(PROMPT, 1, params(1, 0)))
            return [seats.step_of(params(0, 0)), seats.step_of(params(1, 0))]

    assert asyncio.run(run()) == [5, 5]
