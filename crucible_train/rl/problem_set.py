"""Problems to train on and problems held out, never the same.

Two kinds: problems that are drawn without end, and those of a finite list, which is gone through again and again, in
another order each time. Both are functions of the seed and the index alone.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from crucible_train.errors import ConfigError
from crucible_train.rl.environment import Env, EnvGroupBuilder, Trajectory
from crucible_train.seeds import fold, generator

T = TypeVar("T")
GroupReward = Callable[[Sequence[Trajectory]], Awaitable[Sequence[float]]]
_NUM_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """An ``EnvGroupBuilder`` of episodes that are all made alike.

    Attributes:
        problem: its name: the same problem has the same on any day.
        make_env: makes one episode.
        tags: what it is, for metrics by kind.
        group_reward: what each episode gets for its place in the group; None: nothing.
    """

    problem: str
    make_env: Callable[[], Env]
    tags: tuple[str, ...] = ()
    group_reward: GroupReward | None = None

    async def make_envs(self, num_envs: int) -> Sequence[Env]:
        """As many episodes of it."""
        return [self.make_env() for _ in range(num_envs)]

    async def group_rewards(self, trajectories_G: Sequence[Trajectory]) -> Sequence[float]:
        """What each gets for its place among the others."""
        if self.group_reward is None:
            return [0.0] * len(trajectories_G)
        return await self.group_reward(trajectories_G)


@runtime_checkable
class ProblemSet(Protocol):
    """Problems to train on, and problems held out."""

    @property
    def num_train(self) -> int | None:
        """How many different ones there are to train on; None where they are drawn without end."""

    @property
    def held_out(self) -> Sequence[EnvGroupBuilder]:
        """Problems that ``train`` never gives."""

    def train(self, index: int) -> EnvGroupBuilder:
        """The problem at any index of 0 or more; a finite set begins anew after ``num_train``, in another order."""


class DrawnProblems(Generic[T]):
    """Problems that are drawn without end: a ``ProblemSet``.

    Args:
        draw: draws one by a seed.
        key: what makes two of them the same.
        build: makes of one what is played.
        num_held_out: how many different ones are held out.
        seed: decides all of them.
        shown: keys of those that are solved in the prompt, and so are neither trained nor held out.

    Raises:
        ConfigError: there are not that many different ones.
    """

    num_train: int | None = None

    def __init__(
        self,
        draw: Callable[[int], T],
        key: Callable[[T], object],
        build: Callable[[T], EnvGroupBuilder],
        num_held_out: int,
        seed: int,
        shown: Iterable[object] = (),
    ) -> None:
        """Draw what is held out."""
        self._draw, self._key, self._build, self._seed = draw, key, build, seed
        self._kept_back = set(shown)
        held_out: list[EnvGroupBuilder] = []
        for index in range(num_held_out):
            drawn = self._another("held out", index)
            self._kept_back.add(key(drawn))
            held_out.append(build(drawn))
        self.held_out: Sequence[EnvGroupBuilder] = held_out

    def train(self, index: int) -> EnvGroupBuilder:
        """The problem at any index of 0 or more."""
        return self._build(self._another("train", index))

    def _another(self, purpose: str, index: int) -> T:
        """One that is not held out."""
        for attempt in range(_NUM_DRAWS):
            drawn = self._draw(fold(self._seed, purpose, index, attempt))
            if self._key(drawn) not in self._kept_back:
                return drawn
        raise ConfigError(
            f"num_held_out: {len(self._kept_back)} problems are held out or shown, and {_NUM_DRAWS} draws gave no other"
        )


class FiniteProblems(Generic[T]):
    """Problems of a list, each kept once: a ``ProblemSet``.

    Args:
        items: all of them.
        key: what makes two of them the same.
        build: makes of one what is played.
        held_out: how many of them are held out, drawn by the seed, but at most half of them; or others that are held
            out in their stead.
        seed: decides what is held out, and the order of each pass.
        build_held_out: makes of one that is held out what is played, where that is something else.

    Raises:
        ConfigError: none is left to train on.
    """

    def __init__(
        self,
        items: Sequence[T],
        key: Callable[[T], object],
        build: Callable[[T], EnvGroupBuilder],
        held_out: int | Sequence[T],
        seed: int,
        *,
        build_held_out: Callable[[T], EnvGroupBuilder] | None = None,
    ) -> None:
        """Part what is trained from what is held out."""
        self._build, self._seed = build, seed
        different = {key(item): item for item in reversed(items)}
        if isinstance(held_out, int):
            keys = list(reversed(different))
            order = generator(seed, "held out").permutation(len(keys))[: min(held_out, len(keys) // 2)]
            kept_back = {keys[place]: different[keys[place]] for place in order.tolist()}
        else:
            kept_back = {key(item): item for item in held_out}
        self.trained_items = [item for name, item in reversed(different.items()) if name not in kept_back]
        self.held_out_items = list(kept_back.values())
        if not self.trained_items:
            raise ConfigError(f"num_held_out: all of the {len(different)} different problems are held out")
        self.held_out: Sequence[EnvGroupBuilder] = [(build_held_out or build)(item) for item in self.held_out_items]
        self._order = lru_cache(maxsize=2)(self._order_of)  # runs look at one pass, or at where two of them meet

    @property
    def num_train(self) -> int:
        """How many there are to train on."""
        return len(self.trained_items)

    def train(self, index: int) -> EnvGroupBuilder:
        """The problem at any index of 0 or more."""
        epoch, place = divmod(index, len(self.trained_items))
        return self._build(self.trained_items[int(self._order(epoch)[place])])

    def _order_of(self, epoch: int) -> npt.NDArray[np.int64]:
        return generator(self._seed, "order", epoch).permutation(len(self.trained_items))


def digest(value: object) -> str:
    """A short name for a problem that is known by what it says: 16 hexadecimal digits of its JSON text's SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:16]
