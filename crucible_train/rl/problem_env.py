"""A question and one answer: reward = format_coef * (format - 1) + correct.

An answer that cannot be read, that was cut off, or that is not in the form asked for has format 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from inspect import isawaitable
from typing import Any

from crucible_train.renderers import Renderer
from crucible_train.rl.environment import StepResult, StopReason, Turn
from crucible_train.types import Message, TokensWithLogprobs


class ProblemEnv(ABC):
    """An ``Env`` of one turn. What is derived says what is asked and judges the answer's text.

    Args:
        renderer: the model's chat format.
        format_coef: what an answer in the wrong form costs, 0 or more.
        before: messages before the question, such as solved examples.
        tools: OpenAI-style declarations of what the assistant may call; a call is part of its answer.
    """

    def __init__(
        self,
        renderer: Renderer,
        *,
        format_coef: float = 0.1,
        before: Sequence[Message] = (),
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Begin with what is asked."""
        self._tools = tools or None
        self._renderer, self._format_coef, self._before = renderer, format_coef, tuple(before)
        self._answer: tuple[Message, ...] = ()

    @property
    @abstractmethod
    def question(self) -> str:
        """What the user asks."""

    @abstractmethod
    def check_answer(self, text: str) -> float | Awaitable[float]:
        """How right an answer is, from 0 to 1; it may take its time."""

    @abstractmethod
    def check_format(self, text: str) -> bool:
        """Whether an answer has the form that was asked for."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model answers."""
        return (*self._before, Message("user", self.question))

    async def initial_turn(self) -> Turn:
        """The question."""
        prompt = self._renderer.build_generation_prompt(self.messages, self._tools)
        return Turn(prompt, self._renderer.stop_sequences())

    async def step(self, action: TokensWithLogprobs) -> StepResult:
        """Judge the answer."""
        parsed = self._renderer.parse_response(action.tokens, self.messages)
        self._answer = (parsed.message,)
        text = parsed.message.text
        judged = self.check_answer(text)
        correct = float(await judged if isawaitable(judged) else judged)
        has_format = float(parsed.termination.is_clean and self.check_format(text))
        return StepResult(
            self._format_coef * (has_format - 1) + correct,
            reason=StopReason.COMPLETED if parsed.termination.is_clean else StopReason.PARSE_ERROR,
            reward_parts={"correct": correct, "format": has_format},
        )

    def transcript(self) -> Sequence[Message]:
        """Question and answer."""
        return (*self.messages, *self._answer)

    async def close(self) -> None:  # noqa: B027 - most hold nothing
        """Nothing is held."""
