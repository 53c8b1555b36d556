"""What a loop must know to go on, besides the weights."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from crucible_train.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Best:
    """The best value of the watched metric so far, and for how many evaluations it has not been beaten."""

    value: float | None = None
    step: int = 0
    num_evals_since: int = 0

    def after(self, value: float, step: int, *, greater_is_better: bool, threshold: float) -> "Best":
        """With one more evaluation. A gain counts where it is more than ``threshold``; the first value always does."""
        gain = math.inf if self.value is None else (value - self.value if greater_is_better else self.value - value)
        if self.value is None or gain > threshold:
            return Best(value, step, 0)
        return replace(self, num_evals_since=self.num_evals_since + 1)


@dataclass(frozen=True, slots=True)
class LoopState:
    """The place of a run: finished steps, tokens consumed, tokens trained, the best evaluation."""

    step: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    best: Best = field(default_factory=Best)

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
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"the checkpoint's loop state cannot be read: {error}") from error
