"""Sums, such as "What is 12 + 7?": the smallest task on which a small model gets visibly better."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from crucible_train.config.base import Section, option
from crucible_train.renderers import Renderer
from crucible_train.rl.numeric_answer import final_number
from crucible_train.rl.problem_env import ProblemEnv
from crucible_train.rl.problem_set import DrawnProblems, Problem
from crucible_train.types import Message

Operation = Literal["+", "-", "*"]


class ArithmeticOptions(Section):
    """Which sums are asked."""

    operations: list[Operation] = option(["+"], "of +, - and *; each is asked equally often", min_length=1)
    min_operand: int = option(0, "smallest operand, from -1,000,000", ge=-1_000_000, le=1_000_000)
    max_operand: int = option(20, "largest operand, up to 1,000,000", ge=-1_000_000, le=1_000_000)
    num_shots: int = option(3, "solved sums shown before each, 0 to 8", ge=0, le=8)
    answer_alone: bool = option(
        True, "whether the right form is the number and nothing else; otherwise it ends with it"
    )
    format_coef: float = option(0.1, "what an answer in the wrong form costs, 0 or more", ge=0)
    num_held_out: int = option(64, "different sums that are held out, 0 or more", ge=0)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.max_operand < self.min_operand:
            raise ValueError("max_operand is below min_operand")
        return self


@dataclass(frozen=True, slots=True)
class Sum:
    """Two operands and what is done with them."""

    left: int
    operation: Operation
    right: int

    @classmethod
    def draw(cls, options: ArithmeticOptions, seed: int) -> Self:
        """One sum."""
        draws = np.random.Generator(np.random.Philox(key=seed))
        operation = options.operations[int(draws.integers(len(options.operations)))]
        left, right = draws.integers(options.min_operand, options.max_operand, size=2, endpoint=True).tolist()
        return cls(left, operation, right)

    @property
    def key(self) -> object:
        """The same for sums that are the same but for the order of their operands."""
        pair = (self.left, self.right)
        return self.operation, pair if self.operation == "-" else tuple(sorted(pair))

    @property
    def result(self) -> int:
        """What it comes to."""
        match self.operation:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case "*":
                return self.left * self.right

    def __str__(self) -> str:
        """The sum as it is written."""
        return f"{self.left} {self.operation} {self.right}"


class ArithmeticEnv(ProblemEnv):
    """One sum."""

    def __init__(self, asked: Sum, options: ArithmeticOptions, renderer: Renderer, before: Sequence[Message]) -> None:
        """Ask it."""
        super().__init__(renderer, format_coef=options.format_coef, before=before)
        self._sum, self._answer_alone = asked, options.answer_alone

    @property
    def question(self) -> str:
        """The sum in words."""
        return _question(self._sum)

    def check_answer(self, text: str) -> float:
        """Whether the last number is the result."""
        return float(final_number(text) == self._sum.result)

    def check_format(self, text: str) -> bool:
        """Whether it is a number alone, or ends with one."""
        words = text.strip().removesuffix(".").split()
        if not words or (self._answer_alone and len(words) > 1):
            return False
        return words[-1].removeprefix("-").replace(",", "").isdecimal()


class Arithmetic(DrawnProblems[Sum]):
    """Sums without end."""

    Options = ArithmeticOptions

    def __init__(self, options: ArithmeticOptions, renderer: Renderer, seed: int) -> None:
        """Draw what is held out."""
        shown = [Sum.draw(options, number) for number in range(options.num_shots)]
        before = [message for one in shown for message in _solved(one)]

        def build(asked: Sum) -> Problem:
            return Problem(
                f"arithmetic: {asked}",
                partial(ArithmeticEnv, asked, options, renderer, before),
                ("arithmetic", f"arithmetic/{asked.operation}"),
            )

        keys = [one.key for one in shown]
        super().__init__(partial(Sum.draw, options), lambda one: one.key, build, options.num_held_out, seed, keys)


def _question(asked: Sum) -> str:
    return f"What is {asked}?"


def _solved(shown: Sum) -> Sequence[Message]:
    return Message("user", _question(shown)), Message("assistant", str(shown.result))
