"""Two answers to one prompt and a label: what a judge learns from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from crucible_train.seeds import generator
from crucible_train.types import Message

Label = Literal["A", "B", "Tie"]
LABELS: tuple[Label, ...] = ("A", "B", "Tie")
_SWAPPED: dict[Label, Label] = {"A": "B", "B": "A", "Tie": "Tie"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, and which is better.

    Attributes:
        prompt: the messages that are answered.
        a: the answer shown first.
        b: the answer shown second.
        label: the better one, or ``Tie``.
    """

    prompt: tuple[Message, ...]
    a: Message
    b: Message
    label: Label

    def __post_init__(self) -> None:
        """Check the label."""
        if self.label not in LABELS:
            raise ValueError(f"label must be A, B or Tie, not {self.label!r}")

    def swapped(self) -> "Comparison":
        """The same with the answers in the other order; a tie stays one."""
        return replace(self, a=self.b, b=self.a, label=_SWAPPED[self.label])


def comparison_of(
    prompt: Sequence[Message], chosen: Message, rejected: Message, seed: int, index: int = 0
) -> Comparison:
    """A preference as a comparison; the seed and the row's number decide which answer is shown first."""
    found = Comparison(tuple(prompt), chosen, rejected, "A")
    return shuffled(found, seed, index)


def shuffled(comparison: Comparison, seed: int, index: int) -> Comparison:
    """The comparison, or, for half of all numbers, the same with its answers in the other order."""
    return comparison.swapped() if generator(seed, "order of answers", index).integers(2) else comparison
