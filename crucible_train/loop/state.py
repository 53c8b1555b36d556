"""What a loop must know to go on, besides the weights."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from crucible_train.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Best:
    """The best value of the watched metric so far, and how long no gain has counted.

    Attributes:
        value: the best value; None before the first evaluation.
        step: where it was measured.
        mark: the value that the next gain is measured from: that of the last gain that counted.
        num_evals_since: evaluations since then.
    """

    value: float | None = None
    step: int = 0
    mark: float | None = None
    num_evals_since: int = 0

    def after(self, value: float, step: int, *, greater_is_better: bool, threshold: float) -> "Best":
        """With one more evaluation.

        Any gain makes a new best; one counts against stopping early where it is more than ``threshold``, be it made in
        one evaluation or in several. The first value always does; one that is no number never does.
        """
        best = self
        if _gain(value, self.value, greater_is_better) > 0:
            best = replace(best, value=value, step=step)
        if _gain(value, self.mark, greater_is_better) > threshold:
            return replace(best, mark=value, num_evals_since=0)
        return replace(best, num_evals_since=self.num_evals_since + 1)


def _gain(value: float, before: float | None, greater_is_better: bool) -> float:
    if not math.isfinite(value):
        return -math.inf
    if before is None:
        return math.inf
    return value - before if greater_is_better else before - value


@dataclass(frozen=True, slots=True)
class LoopState:
    """The place of a run: finished steps, tokens consumed, the best evaluation.

    ``unlogged`` holds the numbers of the last step where its evaluation is still to come: the weights are those after
    the step, but ``metrics.jsonl`` does not have it yet. A run that goes on from there evaluates first.
    """

    step: int = 0
    num_tokens: int = 0
    best: Best = field(default_factory=Best)
    unlogged: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """From ``to_json``.

        Raises:
            CheckpointError: it is not such an object.
        """
        try:
            return cls(**(value | {"best": Best(**value["best"])}))
        except (TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint's loop state cannot be read: {error}") from error
