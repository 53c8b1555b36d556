"""Episodes of several turns, written as messages: a derived class reads messages and answers with messages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crucible_train.errors import RenderError
from crucible_train.renderers import ParsedResponse, Renderer
from crucible_train.rl.continuation import next_prompt
from crucible_train.rl.environment import StepResult, StopReason, Turn
from crucible_train.types import Message, ModelInput, TokensWithLogprobs


@dataclass(frozen=True, slots=True)
class Reply:
    """What a message led to.

    Attributes:
        reward: of this message alone.
        messages: what is said to the model; it goes on with them.
        reason: why the episode ended, where nothing is said.
        reward_parts: what the reward is made of, by name.
        metrics: whatever else is worth a mean, by name.
    """

    reward: float = 0.0
    messages: Sequence[Message] = ()
    reason: StopReason | None = None
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the conversation goes on or has a reason not to."""
        if bool(self.messages) == (self.reason is not None):
            raise ValueError("a reply has messages, or a reason why the episode ended")


class MessageEnv(ABC):
    """An ``Env`` of messages. Each prompt goes on from the ids that were sampled where the format allows it.

    Args:
        renderer: the model's chat format.
        tools: OpenAI-style declarations of what the assistant may call.
    """

    def __init__(self, renderer: Renderer, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """Begin with an empty conversation."""
        self._renderer, self._tools = renderer, tools or None
        self._messages: tuple[Message, ...] = ()
        self._prompt = ModelInput.empty()

    @abstractmethod
    async def first_messages(self) -> Sequence[Message]:
        """What the model answers first."""

    @abstractmethod
    async def reply(self, answer: ParsedResponse) -> Reply:
        """Take an answer. One that was cut off or could not be read comes too: see its ``termination``."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far."""
        return self._messages

    async def initial_turn(self) -> Turn:
        """The first messages."""
        self._messages = tuple(await self.first_messages())
        return self._turn(self._renderer.build_generation_prompt(self._messages, self._tools))

    async def step(self, action: TokensWithLogprobs) -> StepResult:
        """Read the answer and reply to it."""
        answer = self._renderer.parse_response(action.tokens, self._messages)
        self._messages = (*self._messages, answer.message)
        reply = await self.reply(answer)
        turn, reason = None, reply.reason
        if reply.messages:
            num_answered = len(self._messages)
            self._messages = (*self._messages, *reply.messages)
            written = self._prompt.append_ints(action.tokens)
            try:
                turn = self._turn(next_prompt(self._renderer, self._messages, num_answered, written, self._tools))
            except RenderError:  # the answer holds what the format has no place for in history
                reason = StopReason.PARSE_ERROR
        return StepResult(reply.reward, turn, reason, reply.reward_parts, reply.metrics)

    def transcript(self) -> Sequence[Message]:
        """The conversation so far."""
        return self._messages

    async def close(self) -> None:  # noqa: B027 - most hold nothing
        """Nothing is held."""

    def _turn(self, prompt: ModelInput) -> Turn:
        self._prompt = prompt
        return Turn(prompt, self._renderer.stop_sequences())
