"""Turn by turn: nobody's next turn is sampled before everybody's last one is.

What a model writes depends, in the last bits, on what is computed beside it. Episodes of several turns ask whenever
their environment has answered, so what stands together would follow from the clock, and the same run would not give
the same bits twice. In lockstep it follows from the episodes alone: when each one that is still played waits for its
next answer, all are asked for at once, in the order of their seeds.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from crucible_train.ports import SamplingClient
from crucible_train.types import ModelInput, SamplingParams, TokensWithLogprobs

Answers = Sequence[TokensWithLogprobs]


@runtime_checkable
class Seated(Protocol):
    """A sampling client that waits for all who have a seat; whoever is done must leave."""

    def enter(self, num_seats: int) -> None:
        """Wait for that many more."""

    def leave(self) -> None:
        """One has ended, and is waited for no longer."""

    def step_of(self, params: SamplingParams) -> int:
        """How many optimizer steps the weights had taken when they were asked for these answers; told once."""


@dataclass(slots=True, eq=False)
class _Asked:
    prompt: ModelInput
    num_samples: int
    params: SamplingParams
    answers: asyncio.Future[Answers]


@contextmanager
def seats_of(client: SamplingClient, num_seats: int) -> Iterator[SamplingClient]:
    """What samples for a group of that many episodes: its seats in lockstep, or the client itself where there is none.

    Seats that are still taken at the end are left.
    """
    if not isinstance(client, Lockstep):
        yield client
        return
    seats = Seats(client, num_seats)
    try:
        yield seats
    finally:
        while seats.num_seats:
            seats.leave()


class Lockstep:
    """A ``SamplingClient`` of episodes that are played together; ``seats_of`` gives each group its share of seats."""

    def __init__(self, client: SamplingClient, num_seats: int, now: Callable[[], int] = lambda: 0) -> None:
        """Wait for that many episodes; ``now`` says how many optimizer steps the weights have taken."""
        self._client = client
        self._now = now
        self._steps: dict[int, int] = {}
        self._num_seats = num_seats
        self._waiting: list[_Asked] = []
        self._asking: set[asyncio.Task[None]] = set()

    def enter(self, num_seats: int) -> None:
        """Wait for that many more."""
        self._num_seats += num_seats

    def leave(self) -> None:
        """Wait for one less."""
        self._num_seats -= 1
        self._ask_if_all_wait()

    async def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> Answers:
        """Wait for the others, then for the answers."""
        asked = _Asked(prompt, num_samples, params, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._ask_if_all_wait()
        try:
            return await asked.answers
        finally:
            if asked in self._waiting:  # it was given up; whoever plays it leaves next
                self._waiting.remove(asked)

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        """As the client does; nobody is waited for."""
        return await self._client.compute_logprobs(model_input)

    async def top_logprobs(self, model_input: ModelInput, k: int) -> Sequence[Sequence[tuple[int, float]] | None]:
        """As the client does; nobody is waited for."""
        return await self._client.top_logprobs(model_input, k)

    def step_of(self, params: SamplingParams) -> int:
        """How many optimizer steps the weights had taken when they were asked for these answers; told once."""
        return self._steps.pop(params.seed)

    def _ask_if_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < self._num_seats:
            return
        turn, self._waiting = sorted(self._waiting, key=lambda asked: asked.params.seed), []
        for asked in turn:
            self._steps[asked.params.seed] = self._now()
            task = asyncio.ensure_future(self._ask(asked))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, asked: _Asked) -> None:
        asking = asyncio.ensure_future(self._client.sample(asked.prompt, asked.num_samples, asked.params))
        asked.answers.add_done_callback(lambda answers: asking.cancel() if answers.cancelled() else None)
        try:
            answers = await asking
        except asyncio.CancelledError:
            asked.answers.cancel()
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            if not asked.answers.done():
                asked.answers.set_exception(error)
        else:
            if not asked.answers.done():
                asked.answers.set_result(answers)


@dataclass(slots=True, eq=False)
class Seats:
    """The seats of one group: a ``SamplingClient`` that keeps in step with all the others."""

    lockstep: Lockstep
    num_seats: int = field(default=0)

    def enter(self, num_seats: int) -> None:
        """Wait for that many more, which were left before."""
        self.num_seats += num_seats
        self.lockstep.enter(num_seats)

    def leave(self) -> None:
        """One has ended."""
        if self.num_seats:
            self.num_seats -= 1
            self.lockstep.leave()

    def step_of(self, params: SamplingParams) -> int:
        """As the lockstep."""
        return self.lockstep.step_of(params)

    async def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> Answers:
        """Write continuations, once everybody waits for one."""
        return await self.lockstep.sample(prompt, num_samples, params)

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        """As the client does; nobody is waited for."""
        return await self.lockstep.compute_logprobs(model_input)

    async def top_logprobs(self, model_input: ModelInput, k: int) -> Sequence[Sequence[tuple[int, float]] | None]:
        """As the client does; nobody is waited for."""
        return await self.lockstep.top_logprobs(model_input, k)
