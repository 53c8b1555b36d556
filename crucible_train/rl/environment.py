"""What a policy acts in, and what is kept of its acting.

    builder ── make_envs ──> G environments ── initial_turn, step, ... ──> G trajectories ── group_rewards ──> group

An environment is used once. A builder makes the G environments of one problem; what it makes follows from its own
values alone, so that a run that goes on builds what an undisturbed one does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from crucible_train.types import Message, ModelInput, TokensWithLogprobs


class StopReason(StrEnum):
    """Why an episode ended."""

    COMPLETED = "completed"
    """The environment has what it asked for."""
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    """An answer, or all of them together, reached its limit of tokens."""
    MAX_TOOL_CALLS = "max_tool_calls"
    """An answer called tools more often than was left; those calls were not made."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The model has no room for the next prompt, or for the whole of an answer."""
    PARSE_ERROR = "parse_error"
    """An answer could not be read."""
    TIMEOUT = "timeout"
    """The whole took longer than it may."""
    ERROR = "error"
    """The environment failed; the trajectory is not trained on."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy is to answer.

    Attributes:
        prompt: the ids it sees.
        stop_sequences: what ends the answer: token ids or texts.
        max_tokens: the environment's own limit on this answer; None leaves it to the rollout.
    """

    prompt: ModelInput
    stop_sequences: Sequence[int] | Sequence[str]
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an answer led to.

    Attributes:
        reward: of this answer alone.
        next_turn: what is to be answered next; None ends the episode.
        reason: why it ended; None while it goes on.
        reward_parts: what the reward is made of, by name, for metrics and reports.
        metrics: whatever else is worth a mean, by name.
    """

    reward: float
    next_turn: Turn | None = None
    reason: StopReason | None = None
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the episode goes on or has a reason not to."""
        if (self.next_turn is None) == (self.reason is None):
            raise ValueError("a step has a next turn, or a reason why the episode ended")


@runtime_checkable
class Env(Protocol):
    """One episode. Single use; it may keep state and may take its time."""

    async def initial_turn(self) -> Turn:
        """The first thing to answer."""

    async def step(self, action: TokensWithLogprobs) -> StepResult:
        """Take an answer."""

    def transcript(self) -> Sequence[Message]:
        """The conversation so far, for reports."""

    async def close(self) -> None:
        """Free what the episode holds. Called once, however it ended."""


@runtime_checkable
class CallsTools(Protocol):
    """An environment that runs tools, and so is the one who can keep their number within a limit."""

    def limit_tool_calls(self, limit: int | None) -> None:
        """Run at most this many in the episode; None lifts the limit. Told before the first turn."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One answer, and what came of it.

    Attributes:
        prompt: the ids it answers.
        action: the ids that were sampled, and their log-probabilities then.
        reward: of this answer.
        policy_step: how many optimizer steps the weights had taken when it was asked for.
        reward_parts: as in ``StepResult``.
        metrics: as in ``StepResult``.
    """

    prompt: ModelInput
    action: TokensWithLogprobs
    reward: float
    policy_step: int
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode.

    Attributes:
        transitions: in order.
        reason: why it ended.
        messages: the conversation, for reports.
        error: what failed, where ``reason`` is ``error``.
    """

    transitions: tuple[Transition, ...]
    reason: StopReason
    messages: tuple[Message, ...] = ()
    error: str | None = None

    @property
    def reward(self) -> float:
        """The sum over its answers."""
        return sum(transition.reward for transition in self.transitions)

    @property
    def num_sampled_tokens(self) -> int:
        """How many tokens the policy wrote."""
        return sum(len(transition.action.tokens) for transition in self.transitions)


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """The episodes of one problem.

    Attributes:
        problem: which one: the same problem has the same name on any day.
        trajectories_G: those that did not fail.
        group_rewards_G: what each gets for its place in the group, besides its own.
        tags: what the problem is, for metrics by kind.
        num_failed: how many failed and are left out.
        errors: what failed, tries that were made again included.
    """

    problem: str
    trajectories_G: tuple[Trajectory, ...]
    group_rewards_G: tuple[float, ...]
    tags: tuple[str, ...] = ()
    num_failed: int = 0
    errors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that there is one group reward a trajectory."""
        if len(self.trajectories_G) != len(self.group_rewards_G):
            raise ValueError(f"{len(self.trajectories_G)} trajectories but {len(self.group_rewards_G)} group rewards")

    @property
    def rewards_G(self) -> tuple[float, ...]:
        """The whole reward of each."""
        return tuple(t.reward + extra for t, extra in zip(self.trajectories_G, self.group_rewards_G, strict=True))


@runtime_checkable
class EnvGroupBuilder(Protocol):
    """One problem."""

    @property
    def problem(self) -> str:
        """Its name: the same problem has the same on any day."""

    @property
    def tags(self) -> Sequence[str]:
        """What it is, for metrics by kind."""

    async def make_envs(self, num_envs: int) -> Sequence[Env]:
        """As many episodes of it."""

    async def group_rewards(self, trajectories_G: Sequence[Trajectory]) -> Sequence[float]:
        """What each trajectory gets for its place among the others; zeros where there is no such thing."""
