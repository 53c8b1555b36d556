"""One model's answers beside another's: how often a judge prefers them, ties kept.

    win rate = (wins + ties / 2) / prompts

Every pair is judged in both orders; a verdict that does not hold in both is a tie.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crucible_train.config.sections import AnswerConfig
from crucible_train.evaluation.answers import Answer, Question, answer
from crucible_train.evaluation.comparison import MIN_CLEAR
from crucible_train.evaluation.statistics import Interval, rate_interval, ratio_interval
from crucible_train.judges import Asked, Belief, Judgement, PositionBias, judged_alone, position_bias
from crucible_train.ports import SamplingClient
from crucible_train.renderers import Renderer
from crucible_train.types import Message


@dataclass(frozen=True, slots=True)
class Player:
    """A model that answers, and its chat format."""

    client: SamplingClient
    renderer: Renderer


@dataclass(frozen=True, slots=True)
class Match:
    """One prompt, both answers to it and what the judge says: its ``a`` is the answer of x."""

    question: Question
    x: Answer
    y: Answer
    judgement: Judgement

    def to_json(self) -> dict[str, Any]:
        """As a line of ``results.jsonl``."""
        judgement = self.judgement
        return {
            "kind": "match",
            "row": self.question.row,
            "messages": [message.to_dict() for message in self.question.messages],
            "answers": {"x": self.x.text, "y": self.y.text},
            "verdict": {"A": "x", "B": "y", "Tie": "tie"}[judgement.verdict],
            "score": judgement.score,
            "x_first": _belief_json(judgement.first),
            "y_first": _belief_json(judgement.second),
        }


@dataclass(frozen=True, slots=True)
class WinRate:
    """How x does beside y, over ``num`` prompts.

    Attributes:
        num: how many prompts.
        win_rate: (wins + ties / 2) / prompts, with Wilson's interval.
        wins: the share of prompts on which x is preferred.
        ties: the share on which neither is, or the two orders do not agree.
        losses: the share on which y is preferred.
        score: the mean of the judge's score, from -1 to 1, with its bootstrap interval.
        position: how far the judge heeds the order.
        num_same: on how many prompts both give the same answer, word for word.
    """

    num: int
    win_rate: Interval
    wins: Interval
    ties: Interval
    losses: Interval
    score: Interval
    position: PositionBias
    num_same: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the win rate excludes a draw, over enough decided prompts to mean something."""
        num_decided = round((self.wins.value + self.losses.value) * self.num)
        return num_decided >= MIN_CLEAR and self.win_rate.excludes(0.5)

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.is_clear:
            return "no clear difference"
        return "better" if self.win_rate.value > 0.5 else "worse"

    def to_json(self) -> dict[str, Any]:
        """All of it, as it is stored."""
        return asdict(self) | {"verdict": self.verdict, "metrics": self.metrics()}

    def metrics(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "eval/win_rate": self.win_rate.value,
            "eval/wins": self.wins.value,
            "eval/ties": self.ties.value,
            "eval/losses": self.losses.value,
            "eval/preference": self.score.value,
            "eval/position_bias": self.position.bias,
            "eval/position_flips": self.position.flip_share,
        }


async def play(
    x: Player, y: Player, judge: Asked, asked: Sequence[Question], config: AnswerConfig, seed: int
) -> list[Match]:
    """Have both models answer every question, then the judge compare.

    Args:
        x: the model whose win rate is measured.
        y: the other.
        judge: what compares.
        asked: the prompts.
        config: how answers are sampled.
        seed: decides the draws, the same for both.
    """
    sides = [await answer(side.client, side.renderer, asked, {}, config, seed) for side in (x, y)]
    return await compare_answers(judge, asked, *sides)


async def compare_answers(
    judge: Asked, asked: Sequence[Question], x: Sequence[Answer], y: Sequence[Answer]
) -> list[Match]:
    """Have the judge compare answers that were written before.

    Raises:
        ValueError: the answers are not to these questions.
    """
    rows = [question.row for question in asked]
    if any([one.row for one in side] != rows for side in (x, y)):
        raise ValueError("the answers are not to the same questions")
    judgements = await asyncio.gather(
        *(
            judged_alone(judge, question.messages, Message("assistant", mine.text), Message("assistant", other.text))
            for question, mine, other in zip(asked, x, y, strict=True)
        )
    )
    return [Match(*each) for each in zip(asked, x, y, judgements, strict=True)]


def win_rate(matches: Sequence[Match], seed: int) -> WinRate:
    """The figures over all matches.

    Raises:
        ValueError: there are none.
    """
    num = len(matches)
    if not num:
        raise ValueError("a win rate needs at least one prompt")
    judgements = [match.judgement for match in matches]
    verdicts = [judgement.verdict for judgement in judgements]
    wins, ties, losses = (verdicts.count(label) for label in ("A", "Tie", "B"))
    scores = np.array([judgement.score for judgement in judgements])
    return WinRate(
        num,
        rate_interval(wins + ties / 2, num),
        rate_interval(wins, num),
        rate_interval(ties, num),
        rate_interval(losses, num),
        ratio_interval(scores, np.ones(num), seed),
        position_bias(judgements),
        sum(match.x.text == match.y.text for match in matches),
    )


def read_judgement(row: Mapping[str, Any]) -> Judgement:
    """The judgement of a line of ``results.jsonl``."""
    return Judgement(Belief(**row["x_first"]), Belief(**row["y_first"]))


def _belief_json(belief: Belief) -> dict[str, float]:
    return {"a": belief.a, "b": belief.b, "tie": belief.tie}
