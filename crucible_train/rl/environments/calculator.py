"""Arithmetic that is too large for the head, and a calculator to do it with."""

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from crucible_train.config.base import Section, option
from crucible_train.renderers import ParsedResponse, Renderer
from crucible_train.rl.environment import StopReason
from crucible_train.rl.message_env import Reply
from crucible_train.rl.numeric_answer import final_number
from crucible_train.rl.problem_set import DrawnProblems, Problem
from crucible_train.rl.tool_env import ToolEnv
from crucible_train.rl.tool_syntax import syntax_for
from crucible_train.rl.tools import Tool
from crucible_train.types import Message, ToolCall

_LONGEST = 200  # characters of an expression
_EXPRESSION = re.compile(rf"[0-9+\-*/(). ]{{1,{_LONGEST}}}")
_MAX_POWER = 64
_MAX_DIGITS = 200
_BINARY: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calc(expression: str) -> str:
    """Work out an expression of numbers, + - * / ** and brackets, exactly.

    Args:
        expression: such as 12*(3+4)
    """
    written = expression.strip().replace("×", "*").replace("÷", "/").replace(",", "")
    if not _EXPRESSION.fullmatch(written):
        raise ValueError(f"an expression has numbers, + - * / ** and brackets, and {_LONGEST} characters at most")
    try:
        tree = ast.parse(written, mode="eval")
        value = _value(tree.body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("this is no expression of numbers") from error
    if value.denominator == 1:
        return str(value.numerator)
    return str(float(value))


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return _bounded(Fraction(str(number)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, power = _value(left), _value(right)
            if power.denominator != 1 or abs(power) > _MAX_POWER:
                raise ValueError(f"a power must be a whole number of {_MAX_POWER} at most")
            return _bounded(base ** int(power))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_value(left), _value(right)))
    raise ValueError("only numbers, + - * / ** and brackets can be worked out")


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**_MAX_DIGITS:
        raise ValueError(f"numbers have {_MAX_DIGITS} digits at most")
    return value


CALC = Tool.of(calc)


class CalculatorOptions(Section):
    """Which products are asked, and what calling the calculator is worth."""

    min_operand: int = option(11, "smallest operand, 0 or more", ge=0, le=1_000_000)
    max_operand: int = option(99, "largest operand, up to 1,000,000", ge=0, le=1_000_000)
    num_shots: int = option(2, "solved products shown before each, 0 to 8", ge=0, le=8)
    tool_syntax: Literal["auto", "native", "lines"] = option(
        "auto", "native calls tools as the chat format does, lines as text; auto: native where the format has tools"
    )
    format_coef: float = option(0.1, "what an answer without a number costs, 0 or more", ge=0)
    num_held_out: int = option(64, "different products that are held out, 0 or more", ge=0)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.max_operand < self.min_operand:
            raise ValueError("max_operand is below min_operand")
        return self


@dataclass(frozen=True, slots=True)
class Product:
    """Two factors."""

    left: int
    right: int

    @classmethod
    def draw(cls, options: CalculatorOptions, seed: int) -> Self:
        """One product."""
        draws = np.random.Generator(np.random.Philox(key=seed))
        left, right = draws.integers(options.min_operand, options.max_operand, size=2, endpoint=True).tolist()
        return cls(left, right)

    @property
    def key(self) -> tuple[int, ...]:
        """The same whichever factor comes first."""
        return tuple(sorted((self.left, self.right)))

    @property
    def question(self) -> str:
        """In words."""
        return f"What is {self.left} * {self.right}?"

    @property
    def expression(self) -> str:
        """As a calculator takes it."""
        return f"{self.left}*{self.right}"


class CalculatorEnv(ToolEnv):
    """One product. An answer is right if its number is; whether the calculator was used is the model's business."""

    def __init__(
        self, asked: Product, options: CalculatorOptions, renderer: Renderer, shown: Sequence[Product] = ()
    ) -> None:
        """Ask it."""
        super().__init__(renderer, [CALC], tool_syntax=options.tool_syntax)
        self._asked, self._options, self._shown = asked, options, shown

    async def first_messages(self) -> Sequence[Message]:
        """The question, after solved ones."""
        questions = [product.question for product in (*self._shown, self._asked)]
        first = self.with_instructions(questions[0])
        asked = [first, *(Message("user", question) for question in questions[1:])]
        messages: list[Message] = []
        for question, product in zip(asked, self._shown, strict=False):
            call = ToolCall(CALC.name, json.dumps({"expression": product.expression}))
            result = str(product.left * product.right)
            told = self.syntax.results([(call, result)])
            messages += [question, self.syntax.shown(call), *told, Message("assistant", result)]
        return [*messages, asked[-1]]

    async def judge(self, answer: ParsedResponse) -> Reply:
        """Whether the number is right."""
        number = final_number(answer.message.text)
        correct = float(number == self._asked.left * self._asked.right)
        has_format = float(answer.termination.is_clean and number is not None)
        return Reply(
            self._options.format_coef * (has_format - 1) + correct,
            reason=StopReason.COMPLETED if answer.termination.is_clean else StopReason.PARSE_ERROR,
            reward_parts={"correct": correct, "format": has_format},
            metrics={"called": float(self.num_tool_calls > 0)},
        )


class Calculator(DrawnProblems[Product]):
    """Products without end."""

    Options = CalculatorOptions

    def __init__(self, options: CalculatorOptions, renderer: Renderer, seed: int) -> None:
        """Draw what is held out.

        Raises:
            ConfigError: the chat format has no tools and ``native`` is wanted, or too few products are left.
        """
        syntax_for(renderer, [CALC], options.tool_syntax)
        shown = [Product.draw(options, number) for number in range(options.num_shots)]

        def build(asked: Product) -> Problem:
            make = partial(CalculatorEnv, asked, options, renderer, shown)
            return Problem(f"calculator: {asked.expression}", make, ("calculator",))

        keys = [one.key for one in shown]
        super().__init__(partial(Product.draw, options), lambda one: one.key, build, options.num_held_out, seed, keys)
