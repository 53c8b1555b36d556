"""Guess a number from hints, over several turns: higher, lower, until it is found."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Self

from pydantic import model_validator

from crucible_train.config.base import Section, option
from crucible_train.renderers import ParsedResponse, Renderer
from crucible_train.rl.environment import StopReason
from crucible_train.rl.message_env import MessageEnv, Reply
from crucible_train.rl.numeric_answer import final_number
from crucible_train.rl.problem_set import FiniteProblems, Problem
from crucible_train.types import Message


class GuessOptions(Section):
    """Which numbers are to be guessed, and what a guess is worth."""

    min_number: int = option(1, "smallest number, up to 1,000,000 in size", ge=-1_000_000, le=1_000_000)
    max_number: int = option(20, "largest number, up to 1,000,000 in size", ge=-1_000_000, le=1_000_000)
    max_guesses: int = option(8, "guesses before the number is told, 1 or more", ge=1)
    turn_cost: float = option(
        0.5, "share of the reward that is lost if it is found with the last guess, in [0, 1]", ge=0, le=1
    )
    format_cost: float = option(0.1, "what an answer without a number costs, 0 or more", ge=0)
    shows_game: bool = option(True, "show a game that is played well before the first guess")
    num_held_out: int = option(4, "numbers that are held out, 0 or more", ge=0)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not self.min_number < self.max_number <= self.min_number + 100_000:
            raise ValueError("max_number must be above min_number, by 100,000 at most")
        return self


class GuessEnv(MessageEnv):
    """One number. Finding it at once is worth 1; each further guess takes an equal part of ``turn_cost`` away."""

    def __init__(self, number: int, options: GuessOptions, renderer: Renderer) -> None:
        """Think of the number."""
        super().__init__(renderer)
        self._number, self._options, self._num_guesses = number, options, 0

    async def first_messages(self) -> Sequence[Message]:
        """The rules, after a game that shows them."""
        low, high = self._options.min_number, self._options.max_number
        rules = (
            f"I think of a whole number from {low} to {high}. Guess it. Answer with a number and nothing else; "
            'I say "higher" or "lower".'
        )
        if not self._options.shows_game:
            return [Message("user", rules)]
        return [*_game(rules, low, high), Message("user", f"Right. {rules}")]

    async def reply(self, answer: ParsedResponse) -> Reply:
        """Say where the number lies."""
        guess = final_number(answer.message.text) if answer.termination.is_clean else None
        self._num_guesses += 1
        cost = self._options.format_cost if guess is None else 0.0
        parts = {"found": float(guess == self._number), "format": float(guess is not None)}
        if guess == self._number:
            return Reply(self._worth(), reason=StopReason.COMPLETED, reward_parts=parts)
        if self._num_guesses >= self._options.max_guesses:
            return Reply(-cost, reason=StopReason.MAX_TURNS, reward_parts=parts)
        hint = "Answer with a number." if guess is None else _hint(guess < self._number)
        return Reply(-cost, [Message("user", hint)], reward_parts=parts)

    def _worth(self) -> float:
        """What finding it with this guess is worth."""
        most = max(self._options.max_guesses - 1, 1)
        return 1.0 - self._options.turn_cost * (self._num_guesses - 1) / most


def _hint(is_below: bool) -> str:
    return "higher" if is_below else "lower"


def _shown(low: int, high: int) -> int:
    """The number of the game that is shown; it is asked for in no other."""
    return low + 2 * (high - low) // 3


def _game(rules: str, low: int, high: int) -> Iterator[Message]:
    """A game that is played by halves, up to the guess that finds the number."""
    number, said = _shown(low, high), rules
    while True:
        guess = (low + high) // 2
        yield Message("user", said)
        yield Message("assistant", str(guess))
        if guess == number:
            return
        said = _hint(guess < number)
        low, high = (guess + 1, high) if guess < number else (low, guess - 1)


class GuessTheNumber(FiniteProblems[int]):
    """All numbers of a range."""

    Options = GuessOptions

    def __init__(self, options: GuessOptions, renderer: Renderer, seed: int) -> None:
        """Hold some of them out."""
        low, high = options.min_number, options.max_number

        def build(number: int) -> Problem:
            name = f"guess_the_number: {number} of {low} to {high}"
            return Problem(name, partial(GuessEnv, number, options, renderer), ("guess_the_number",))

        numbers = [number for number in range(low, high + 1) if not options.shows_game or number != _shown(low, high)]
        super().__init__(numbers, lambda number: number, build, options.num_held_out, seed)
