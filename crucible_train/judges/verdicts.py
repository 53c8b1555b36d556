"""What a judge says of two answers, and how far it heeds their order.

score     p(a) - p(b), the mean over both orders                                        -1 to 1
bias      half of (score where a stands first - score where a stands second)            1: the first, whatever it is
verdict   the likeliest of a, b and a tie, if it is the same in both orders; else a tie
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from crucible_train.judges.comparisons import Label
from crucible_train.types import Message

_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Belief:
    """What one look at two answers says: probabilities that sum to 1."""

    a: float
    b: float
    tie: float = 0.0

    def __post_init__(self) -> None:
        """Check that they are probabilities."""
        parts = (self.a, self.b, self.tie)
        if not (all(-_SLACK <= part <= 1 + _SLACK for part in parts) and abs(sum(parts) - 1) <= _SLACK):
            raise ValueError(f"{parts} are not probabilities that sum to 1")

    @classmethod
    def of_score(cls, score: float) -> Self:
        """Of a number from -1, ``b`` without doubt, to 1, ``a`` without doubt.

        Raises:
            ValueError: it is not between -1 and 1.
        """
        if not -1 <= score <= 1:
            raise ValueError(f"a comparison gave {score}, which is not between -1 and 1")
        return cls((1 + score) / 2, (1 - score) / 2)

    @property
    def score(self) -> float:
        """``p(a) - p(b)``."""
        return self.a - self.b

    @property
    def verdict(self) -> Label:
        """The likeliest; among equals a tie."""
        if self.a > max(self.b, self.tie):
            return "A"
        return "B" if self.b > max(self.a, self.tie) else "Tie"

    def of_swapped(self) -> "Belief":
        """The same of the answers in the other order."""
        return Belief(self.b, self.a, self.tie)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Both looks at answers a and b: ``first`` with a shown first, ``second`` with a shown second."""

    first: Belief
    second: Belief

    @property
    def score(self) -> float:
        """From -1, b is better, to 1, a is: the mean over both orders."""
        return (self.first.score + self.second.score) / 2

    @property
    def tie(self) -> float:
        """The probability that neither is better: the mean over both orders."""
        return (self.first.tie + self.second.tie) / 2

    @property
    def bias(self) -> float:
        """From -1, always the second, to 1, always the first; 0 where order makes no difference."""
        return (self.first.score - self.second.score) / 2

    @property
    def flips(self) -> bool:
        """Whether the two orders have different verdicts."""
        return self.first.verdict != self.second.verdict

    @property
    def verdict(self) -> Label:
        """What both orders say; a tie where they do not agree."""
        return "Tie" if self.flips else self.first.verdict


@dataclass(frozen=True, slots=True)
class PositionBias:
    """How far order decides, over ``num`` pairs: the mean ``bias``, and the share of pairs whose verdict flips."""

    num: int
    bias: float
    flip_share: float

    def joined(self, more: "PositionBias") -> "PositionBias":
        """Over the pairs of both."""
        num = max(1, self.num + more.num)
        bias = (self.num * self.bias + more.num * more.bias) / num
        return PositionBias(self.num + more.num, bias, (self.num * self.flip_share + more.num * more.flip_share) / num)


def position_bias(judgements: Sequence[Judgement]) -> PositionBias:
    """How far order decides what was judged; nothing where nothing was."""
    num = len(judgements)
    if not num:
        return PositionBias(0, 0.0, 0.0)
    bias = sum(judgement.bias for judgement in judgements) / num
    return PositionBias(num, bias, sum(judgement.flips for judgement in judgements) / num)


@runtime_checkable
class PreferenceModel(Protocol):
    """Says which of two answers is better."""

    async def compare(self, prompt: Sequence[Message], a: Message, b: Message) -> float:
        """1 where ``a`` is better without doubt, -1 where ``b`` is, 0 where neither."""


@runtime_checkable
class Judge(PreferenceModel, Protocol):
    """A preference model that looks at both orders itself, and at many pairs at once."""

    async def judge(self, prompt: Sequence[Message], pairs: Sequence[tuple[Message, Message]]) -> Sequence[Judgement]:
        """What it says of each pair of answers to a prompt."""
