"""One episode: an environment and a policy, turn by turn, until one of them or a limit ends it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from crucible_train.errors import Interrupted, RolloutError
from crucible_train.ports import SamplingClient
from crucible_train.rl.clock import Clock
from crucible_train.rl.environment import CallsTools, Env, StepResult, StopReason, Trajectory, Transition, Turn
from crucible_train.rl.lockstep import Seated
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.seeds import fold
from crucible_train.types import TokensWithLogprobs

# What a cut-off answer may have been taken for: the limit that cut it off is the real reason.
_NOT_KNOWING_OF_THE_CUT = (None, StopReason.COMPLETED, StopReason.PARSE_ERROR)


@dataclass(frozen=True, slots=True)
class Policy:
    """What answers.

    Attributes:
        client: samples from it.
        config: how, and how far an episode may go.
        seed: decides all draws.
        step: how many optimizer steps its weights have taken by now.
    """

    client: SamplingClient
    config: RolloutConfig
    seed: int
    step: Callable[[], int]

    def failure(self, what: str, error: Exception) -> str:
        """What failed, in a line.

        Raises:
            RolloutError: no failure is tolerated.
        """
        line = f"{what}: {type(error).__name__}: {error}"
        if self.config.failures.stops_run:
            raise RolloutError(line) from error
        return line


@dataclass(slots=True, eq=False)
class Episode:
    """An environment while it is played. ``begin``, then ``play``; ``close`` may be called at any time.

    Attributes:
        env: the environment.
        policy: what answers.
        problem: its name, for seeds and errors.
        sample: its number in its group.
        attempt: how often it was tried before.
    """

    env: Env
    policy: Policy
    problem: str
    sample: int
    attempt: int = 0
    _transitions: list[Transition] = field(default_factory=list, init=False)
    _first: Turn | Exception | StopReason = field(default=StopReason.TIMEOUT, init=False)
    _clock: Clock = field(init=False)
    _is_closed: bool = field(default=False, init=False)

    async def begin(self) -> None:
        """Have the first turn ready. What fails is told by ``play``."""
        config = self.policy.config
        self._clock, has_ended = Clock(config.timeout_s), False
        try:
            if isinstance(self.env, CallsTools):
                self.env.limit_tool_calls(config.max_tool_calls)
            try:
                async with self._clock.running() as limit:
                    self._first = await self.env.initial_turn()
            finally:
                has_ended = limit.expired()
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - an environment may raise anything, and it is told by play
            self._first = StopReason.TIMEOUT if has_ended else error

    async def play(self) -> Trajectory:
        """All turns. The environment is closed; what fails is kept on the trajectory.

        Raises:
            RolloutError: something failed, and the policy's configuration tolerates no failure.
        """
        try:
            try:
                reason = await self._until_the_deadline()
                messages = tuple(self.env.transcript())
            finally:
                await self.close()
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - an environment may raise anything; its episode alone is lost
            where = f"{self.problem}, sample {self.sample}, turn {len(self._transitions)}"
            failure = self.policy.failure(where, error)
            return Trajectory(tuple(self._transitions), StopReason.ERROR, error=failure)
        return Trajectory(tuple(self._transitions), reason, messages)

    async def close(self) -> None:
        """Close the environment, once."""
        if not self._is_closed:
            self._is_closed = True
            if isinstance(self.policy.client, Seated):
                self.policy.client.leave()
            await self.env.close()

    async def _until_the_deadline(self) -> StopReason:
        try:
            async with self._clock.running() as limit:
                return await self._turns()
        except TimeoutError:
            if limit.expired():
                return StopReason.TIMEOUT
            raise

    async def _turns(self) -> StopReason:
        turn = self._first
        if isinstance(turn, Exception):
            raise turn
        while isinstance(turn, Turn):
            turn = await self._answer(turn)
        return turn

    async def _answer(self, turn: Turn) -> Turn | StopReason:
        """Have a turn answered; the next one, or why there is none."""
        room, limit = self._room(turn)
        if room < 1:
            return limit
        config = self.policy.config
        answer, policy_step = await self._asked(turn, room)
        try:
            result = await self.env.step(answer)
            _check(result)
        except BaseException:  # also where time ran out: it was written, and nothing came of it
            self._keep(turn, answer, StepResult(0.0, reason=StopReason.ERROR), policy_step)
            raise
        self._keep(turn, answer, result, policy_step)
        if answer.stop_reason == "length" and result.reason in _NOT_KNOWING_OF_THE_CUT:
            return limit
        if result.next_turn is None:
            assert result.reason is not None
            return result.reason
        return StopReason.MAX_TURNS if len(self._transitions) >= config.max_turns else result.next_turn

    async def _asked(self, turn: Turn, room: int) -> tuple[TokensWithLogprobs, int]:
        """The answer to a turn, and how many optimizer steps the weights that wrote it had taken.

        Whoever waits for others does so on their time.
        """
        client, step = self.policy.client, self.policy.step()
        params = self.policy.config.params(turn, room, self._seed())
        if not isinstance(client, Seated):
            [answer] = await client.sample(turn.prompt, 1, params)
            return answer, step
        self._clock.stop()
        [answer] = await client.sample(turn.prompt, 1, params)
        self._clock.go_on()
        return answer, client.step_of(params)

    def _room(self, turn: Turn) -> tuple[int, StopReason]:
        """How long the next answer may be, and what it means if it gets that long."""
        config = self.policy.config
        written = sum(len(transition.action.tokens) for transition in self._transitions)
        rooms = [(config.max_tokens, StopReason.MAX_TOKENS)]
        if turn.max_tokens is not None:
            rooms.append((turn.max_tokens, StopReason.MAX_TOKENS))
        if config.max_trajectory_tokens is not None:
            rooms.append((config.max_trajectory_tokens - written, StopReason.MAX_TOKENS))
        if config.max_context is not None:
            rooms.append((config.max_context - turn.prompt.length, StopReason.CONTEXT_OVERFLOW))
        return min(rooms, key=lambda room: room[0])

    def _seed(self) -> int:
        purpose = ("sample", self.problem, self.sample, len(self._transitions))
        return fold(self.policy.seed, *purpose, *(("try", self.attempt) if self.attempt else ()))

    def _keep(self, turn: Turn, answer: TokensWithLogprobs, result: StepResult, policy_step: int) -> None:
        self._transitions.append(
            Transition(turn.prompt, answer, float(result.reward), policy_step, result.reward_parts, result.metrics)
        )


def _check(result: StepResult) -> None:
    if not math.isfinite(result.reward):
        raise ValueError(f"the reward is {result.reward}")
    if result.reason is StopReason.ERROR:
        raise RuntimeError("the environment says that it failed")
