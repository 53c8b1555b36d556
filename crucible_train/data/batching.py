"""Which examples make up which step: a pure function of the seed and the step."""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from crucible_train.errors import ConfigError
from crucible_train.seeds import generator


@dataclass(slots=True)
class BatchPlan:
    """The order of examples over all epochs. Every epoch is a new permutation; the last partial batch is kept.

    Args:
        num_examples: how many there are.
        batch_size: examples a step.
        num_epochs: passes over the data, a part of one allowed.
        max_steps: an upper bound on steps, or None.
        seed: decides the permutations.

    Raises:
        ConfigError: nothing would be trained.
    """

    num_examples: int
    batch_size: int
    num_epochs: float
    max_steps: int | None
    seed: int
    _epoch: int = field(default=-1, init=False)
    _order: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), init=False)

    def __post_init__(self) -> None:
        """Refuse an empty plan."""
        if self.num_examples < 1:
            raise ConfigError("dataset: there is no example to train on")
        if self.num_steps < 1:
            raise ConfigError("train.num_train_epochs: no step would be taken")

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass, the last possibly smaller."""
        return math.ceil(self.num_examples / self.batch_size)

    @property
    def num_steps(self) -> int:
        """Steps of the run: ``max_steps`` where it is given, however many epochs that takes."""
        if self.max_steps is not None:
            return self.max_steps
        # as the number is written: 0.07 passes of 100 steps are 7 steps, though 0.07 * 100 is a little more
        return math.ceil(Fraction(str(self.num_epochs)) * self.steps_per_epoch)

    def epoch(self, step: int) -> float:
        """How many passes are done after ``step`` steps."""
        return step / self.steps_per_epoch

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The examples of a step, which counts from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = generator(self.seed, "order", epoch).permutation(self.num_examples)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]


def split(num_rows: int, share: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers to train on and to hold out, both rising; at least one is held out where ``share`` is above 0.

    At least one is always left to train on.
    """
    num_held_out = min(max(1, round(num_rows * share)), num_rows - 1) if share > 0 else 0
    order = generator(seed, "split").permutation(num_rows)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])
