"""The learning rate as a pure function of the step.

    rate(step) = peak * warm-up(step) * shape(step),    step = 0, 1, ..., num_steps - 1

The warm-up rises linearly and reaches the peak at its last step, so the first step's rate is peak / warm-up steps and
never zero. Shapes fall from 1 just after the warm-up to ``min_ratio`` at the end, and stay there past it.

    constant   1
    linear     1 - (1 - min_ratio) p                       p = steps after the warm-up / all steps after it
    cosine     min_ratio + (1 - min_ratio) (1 + cos(pi p)) / 2      (Loshchilov and Hutter, arXiv 1608.03983)
    wsd        1, then linear over the last decay steps     (Hu et al., arXiv 2404.06395)
"""

import math
from dataclasses import dataclass
from typing import Literal

from crucible_train.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning-rate schedule.

    Args:
        kind: the shape after the warm-up.
        peak: the highest rate.
        num_steps: optimizer steps of the run, 1 or more.
        warmup_steps: how many of them rise, from 0.
        decay_steps: for wsd, how many fall at the end.
        min_ratio: the rate at the end as a share of the peak.
    """

    kind: Literal["constant", "linear", "cosine", "wsd"]
    peak: float
    num_steps: int
    warmup_steps: int = 0
    decay_steps: int = 0
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        """Check that the parts fit into the whole."""
        if self.num_steps < 1 or self.warmup_steps < 0 or self.decay_steps < 0:
            raise ConfigError(f"train: a schedule needs at least one step and no negative part: {self}")
        if self.kind == "wsd" and self.warmup_steps + self.decay_steps > self.num_steps:
            raise ConfigError(
                f"train.decay_steps: {self.warmup_steps} warm-up and {self.decay_steps} decay steps do not fit into "
                f"{self.num_steps} steps"
            )

    def rate(self, step: int) -> float:
        """The rate of a step, which counts from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        return self.peak * (self.min_ratio + (1.0 - self.min_ratio) * self._shape(step))

    def _shape(self, step: int) -> float:
        """What is left of the way from peak to minimum, from 1 to 0."""
        if self.kind == "constant":
            return 1.0
        length = self.decay_steps if self.kind == "wsd" else self.num_steps - self.warmup_steps
        start = self.num_steps - length
        if step < start:
            return 1.0
        progress = min((step - start) / length, 1.0) if length else 1.0
        return 0.5 * (1.0 + math.cos(math.pi * progress)) if self.kind == "cosine" else 1.0 - progress


def count_steps(value: float, num_steps: int) -> int:
    """A number of steps that is given as a whole number from 1, or as a share of all steps in [0, 1)."""
    return round(value * num_steps) if value < 1 else int(value)
