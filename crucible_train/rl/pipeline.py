"""When answers are sampled: the one place where synchronous, off-policy and streamed training differ.

Problems have numbers 0, 1, 2, ..., and are trained on in that order, each once, whatever finishes first: so a run is
the same every time, and one that goes on trains on what an undisturbed one would have.

    synchronous   [sample batch 0][train 0][sample 1][train 1] ...
    off_policy    [sample 0][sample 1] ... [train 0, sample K][train 1, sample K + 1] ...    K batches ahead
    streamed      [sample 0 ........]
                       [gradients of its first part][of its second] ... [step]

Off policy, sampling waits where it would run more than K batches ahead; nothing that was sampled is thrown away.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from crucible_train.errors import CheckpointError
from crucible_train.ports import SamplingClient
from crucible_train.rl.config import ScheduleConfig
from crucible_train.rl.environment import TrajectoryGroup
from crucible_train.rl.group_json import group_from_json, group_to_json

Play = Callable[[int, SamplingClient], Awaitable[TrajectoryGroup | None]]
"""Plays the problem of this number with answers of this client; None where its group is given up."""
_PASSES_TO_ASK = 24
"""Of the event loop, until a group has made its environments, begun them, and asked: it takes half as many."""
Game = asyncio.Future[TrajectoryGroup | None]


class Pipeline:
    """Plays problems ahead of their training, and knows what is to be kept of that.

    A context: on leaving it, whatever is still being played is cancelled.
    """

    def __init__(
        self, play: Play, schedule: ScheduleConfig, groups_per_batch: int, gather: Callable[[int], SamplingClient]
    ) -> None:
        """Begin with problem 0.

        Args:
            play: plays a problem.
            schedule: when.
            groups_per_batch: problems of a batch.
            gather: what samples for so many problems that begin together.
        """
        self._play = play
        self._gather = gather
        self._schedule = schedule
        self._num_ahead = schedule.max_steps_off_policy if schedule.mode == "off_policy" else 0
        self._groups_per_batch = groups_per_batch
        self._next = 0
        self._next_of_step = 0
        self._games: dict[int, Game] = {}

    async def __aenter__(self) -> "Pipeline":
        """Nothing is played before it is asked for."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop what is being played."""
        self.stop()
        games, self._games = self._games, {}
        await asyncio.gather(*games.values(), return_exceptions=True)

    def stop(self) -> None:
        """Cancel what is being played; what is finished stays."""
        for game in self._games.values():
            game.cancel()

    async def look_ahead(self, num_batches_left: int) -> None:
        """Begin to play as far ahead as the schedule allows, the batch that comes next included.

        On return, problems that need not wait for anything have asked for their first answers: so it is the weights of
        now that give them, in every run alike.
        """
        for batch in range(min(1 + self._num_ahead, num_batches_left)):
            first = self._next + batch * self._groups_per_batch
            self._begin(range(first, first + self._groups_per_batch))
        for _ in range(_PASSES_TO_ASK):
            await asyncio.sleep(0)

    async def parts(self) -> AsyncIterator[Sequence[TrajectoryGroup]]:
        """The groups of the next batch, in the order of their problems: all at once, or part by part as they finish.

        Problems whose groups were given up are missing.
        """
        num_groups = self._groups_per_batch
        num_parts = min(self._schedule.num_minibatches, num_groups) if self._schedule.mode == "streamed" else 1
        ends = [num_groups * (part + 1) // num_parts for part in range(num_parts)]
        self._begin(range(self._next, self._next + num_groups))
        for begin, end in pairwise([0, *ends]):
            yield await self.take(end - begin)

    async def take(self, num_problems: int) -> Sequence[TrajectoryGroup]:
        """The groups of the next problems, all at once."""
        indices = range(self._next, self._next + num_problems)
        self._begin(indices)
        groups = await _ends([self._games[index] for index in indices])
        self._next += num_problems
        return [group for group in groups if group is not None]

    @property
    def num_trained(self) -> int:
        """How many problems are taken and trained on."""
        return self._next_of_step

    def finish_step(self) -> None:
        """What was taken is trained on: it need not be kept any more."""
        self._next_of_step = self._next
        self._games = {index: game for index, game in self._games.items() if index >= self._next}

    async def settle(self) -> None:
        """Wait until everything that is being played is finished."""
        await _ends([*self._games.values()])

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps: the first problem that is not trained on, and the groups played from there on.

        A problem that is still being played is played again by a run that goes on from here. So is the whole batch
        where nothing is played ahead: the weights are those that played it, and answers that are sampled together must
        be again, for what else is in a batch decides how log-probabilities are rounded.
        """
        finished = {
            index: game.result()
            for index, game in sorted(self._games.items())
            if self._num_ahead and game.done() and not game.cancelled() and game.exception() is None
        }
        return {
            "next_problem": self._next_of_step,
            "played": {
                str(index): None if group is None else group_to_json(group) for index, group in finished.items()
            },
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from ``to_json``; to be called before anything is played.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            self._next = self._next_of_step = int(kept["next_problem"])
            played = {int(index): value for index, value in kept["played"].items()}
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint's rollouts cannot be read: {error!r}") from error
        for index, value in played.items():
            game: Game = asyncio.get_running_loop().create_future()
            game.set_result(None if value is None else group_from_json(value))
            self._games[index] = game

    def _begin(self, indices: Sequence[int]) -> None:
        """Begin those that are not begun yet; they are sampled for together."""
        new = [index for index in indices if index not in self._games]
        if new:
            client = self._gather(len(new))
            for index in new:
                self._games[index] = asyncio.ensure_future(self._play(index, client))


async def _ends(games: Sequence[Game]) -> list[TrajectoryGroup | None]:
    """What games end with. One that fails is raised at once; whoever is cancelled here leaves all of them to go on."""
    if games:
        await asyncio.wait(games, return_when=asyncio.FIRST_EXCEPTION)
    failed = [game for game in games if game.done() and not game.cancelled() and game.exception() is not None]
    return [game.result() for game in failed or games]
