"""How episodes are played: limits with their reasons, failures, cancellation, seeds."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from crucible_train.errors import Interrupted, RolloutError, RunError
from crucible_train.rl.environment import EnvGroupBuilder, StepResult, StopReason, Trajectory, Turn
from crucible_train.rl.failures import FailurePolicy
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.rl.rollouts import rollout_group
from crucible_train.types import Message, ModelInput, TokensWithLogprobs
from tests.rl.conftest import play, play_group

PROMPT = ModelInput.from_ints([5, 6, 7])
STOP = 99
FIRST = Turn(PROMPT, [STOP])


class Client:
    """Writes answers of a length, with a stop at their end where there is room for it."""

    def __init__(self, length: int = 3, hook: Any = None) -> None:
        self.asked: list[Any] = []
        self.length, self.hook = length, hook

    async def sample(self, prompt, num_samples, params):
        self.asked.append((prompt, num_samples, params))
        if self.hook is not None:
            await self.hook(len(self.asked) - 1)
        ids = ([1] * (self.length - 1) + [STOP])[: params.max_tokens]
        return [TokensWithLogprobs(tuple(ids), (-0.5,) * len(ids), "stop" if ids[-1] == STOP else "length")]


@dataclass
class Counting:
    """Goes on for some turns, each worth 1; a hook may do anything at any moment."""

    num_turns: int = 3
    hook: Any = None
    first: Turn = FIRST
    steps: list[Any] = field(default_factory=list)
    num_closed: int = 0

    async def _at(self, moment: str) -> None:
        if self.hook is not None:
            await self.hook(moment, self)

    async def initial_turn(self):
        await self._at("first")
        return self.first

    async def step(self, action):
        await self._at("step")
        self.steps.append(action)
        if len(self.steps) == self.num_turns:
            return StepResult(1.0, reason=StopReason.COMPLETED, reward_parts={"right": 1.0}, metrics={"size": 2.0})
        longer = self.first.prompt.append_ints([8] * len(self.steps))
        return StepResult(1.0, next_turn=replace(self.first, prompt=longer))

    def transcript(self):
        return [Message("user", "count")]

    async def close(self):
        self.num_closed += 1
        await self._at("close")


@dataclass
class Builder:
    """Keeps the environments it makes; the hook gets the number of each."""

    hook: Any = None
    num_turns: int = 1
    made: list[Counting] = field(default_factory=list)
    problem: str = "p"
    tags: tuple[str, ...] = ("kind",)
    extra: Any = None

    async def make_envs(self, num_envs):
        for _ in range(num_envs):
            number = len(self.made)

            async def hook(moment, env, number=number):
                if self.hook is not None:
                    await self.hook(moment, number)

            self.made.append(Counting(self.num_turns, hook))
        return self.made[-num_envs:]

    async def group_rewards(self, trajectories_G):
        return [0.0] * len(trajectories_G) if self.extra is None else self.extra(trajectories_G)


def all_closed_once(builder: Builder) -> bool:
    return [env.num_closed for env in builder.made] == [1] * len(builder.made)


def test_an_episode_is_played_to_its_end():
    env, client, steps = Counting(), Client(), iter([4, 5, 7])
    trajectory = play(env, client, policy_step=lambda: next(steps))
    assert trajectory.reason is StopReason.COMPLETED
    assert trajectory.error is None
    assert trajectory.reward == 3.0
    assert trajectory.messages == (Message("user", "count"),)
    assert [t.prompt.to_ints() for t in trajectory.transitions] == [[5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8, 8]]
    assert [t.action for t in trajectory.transitions] == env.steps
    assert [t.policy_step for t in trajectory.transitions] == [4, 5, 7]
    assert trajectory.transitions[-1].reward_parts == {"right": 1.0}
    assert trajectory.transitions[-1].metrics == {"size": 2.0}
    assert env.num_closed == 1


def test_what_is_asked_follows_the_configuration_and_the_turn():
    client = Client()
    play(Counting(1, first=Turn(PROMPT, ["END"], max_tokens=7)), client, temperature=0.3, top_p=0.8, max_tokens=50)
    [(prompt, num, params)] = client.asked
    assert (prompt, num) == (PROMPT, 1)
    assert (params.max_tokens, params.temperature, params.top_p) == (7, 0.3, 0.8)
    assert (params.stop_texts, params.stop_token_ids) == (("END",), ())
    play(Counting(1), client, max_tokens=50)
    assert (client.asked[1][2].max_tokens, client.asked[1][2].stop_token_ids) == (50, (STOP,))


@pytest.mark.parametrize(
    ("limits", "turn", "reason", "num_answers"),
    [
        ({"max_turns": 2}, {}, StopReason.MAX_TURNS, 2),
        ({"max_tokens": 2}, {}, StopReason.MAX_TOKENS, 1),
        ({}, {"max_tokens": 2}, StopReason.MAX_TOKENS, 1),
        ({"max_trajectory_tokens": 6}, {}, StopReason.MAX_TOKENS, 2),
        ({"max_trajectory_tokens": 5}, {}, StopReason.MAX_TOKENS, 2),
        ({"max_context": 7}, {}, StopReason.CONTEXT_OVERFLOW, 3),
        ({"max_context": 6}, {}, StopReason.CONTEXT_OVERFLOW, 2),
        ({"max_context": 3}, {}, StopReason.CONTEXT_OVERFLOW, 0),
        ({"max_turns": 3, "max_trajectory_tokens": 9, "max_context": 8, "max_tokens": 3}, {}, StopReason.COMPLETED, 3),
    ],
)
def test_a_limit_ends_the_episode_and_the_answer_that_reached_it_is_judged(limits, turn, reason, num_answers):
    env = Counting(first=Turn(PROMPT, [STOP], **turn))
    trajectory = play(env, Client(), **limits)
    assert trajectory.reason is reason
    assert len(trajectory.transitions) == len(env.steps) == num_answers
    assert trajectory.reward == num_answers
    assert trajectory.messages
    assert env.num_closed == 1


def test_no_answer_is_longer_than_what_is_left():
    client = Client()
    play(Counting(), client, max_trajectory_tokens=5, max_tokens=4, max_context=100)
    assert [params.max_tokens for _, _, params in client.asked] == [4, 2]


def test_a_cut_off_last_answer_has_the_limit_as_its_reason_but_not_where_the_environment_has_another():
    assert play(Counting(1), Client(9), max_tokens=3).reason is StopReason.MAX_TOKENS

    class Strict(Counting):
        async def step(self, action):
            return StepResult(0.25, reason=StopReason.MAX_TOOL_CALLS)

    assert play(Strict(), Client(9), max_tokens=3).reason is StopReason.MAX_TOOL_CALLS


def test_time_that_runs_out_leaves_what_was_earned():
    async def never(number):
        if number == 1:
            await asyncio.Event().wait()

    env = Counting()
    trajectory = play(env, Client(hook=never), timeout_s=0.5)
    assert trajectory.reason is StopReason.TIMEOUT
    assert (trajectory.reward, len(trajectory.transitions), env.num_closed) == (1.0, 1, 1)
    assert trajectory.error is None


@pytest.mark.parametrize("moment", ["first", "step"])
def test_an_environment_that_takes_too_long_is_out_of_time(moment):
    async def never(at, env):
        if at == moment:
            await asyncio.Event().wait()

    env = Counting(hook=never)
    trajectory = play(env, Client(), timeout_s=0.5)
    assert trajectory.reason is StopReason.TIMEOUT
    assert [t.reward for t in trajectory.transitions] == ([0.0] if moment == "step" else [])
    assert env.num_closed == 1


def test_a_timeout_of_the_environments_own_is_a_failure():
    async def raise_it(at, env):
        if at == "step":
            raise TimeoutError("of its own")

    with pytest.raises(RolloutError, match="of its own"):
        play(Counting(hook=raise_it), Client(), timeout_s=30)


def test_an_environment_with_tools_is_told_their_limit():
    class WithTools(Counting):
        limit: Any = "untold"

        def limit_tool_calls(self, limit):
            assert not self.steps
            self.limit = limit

    env = WithTools()
    play(env, Client(), max_tool_calls=2)
    assert env.limit == 2
    play(env := WithTools(), Client())
    assert env.limit is None


# Groups ---------------------------------------------------------------------------------------------------------------


def test_the_first_turns_of_a_group_are_asked_for_in_one_moment_however_long_each_took():
    moments = []
    client = Client()

    async def slow(at, number):
        if at == "first":
            for _ in range(number):
                await asyncio.sleep(0)

    async def watch() -> Any:
        task = asyncio.create_task(rollout_group(builder, 4, client, RolloutConfig(), 0, lambda: 0))
        while not task.done():
            moments.append(len(client.asked))
            await asyncio.sleep(0)
        return await task

    builder = Builder(slow)
    group = asyncio.run(watch())
    assert len(group.trajectories_G) == 4
    assert set(moments) <= {0, 4}


def test_each_answer_has_a_seed_of_its_own_and_the_same_on_any_day():
    def seeds(seed: int = 0, problem: str = "p") -> list[int]:
        client = Client()
        play_group(Builder(num_turns=2, problem=problem), client, 3, seed)
        return [params.seed for _, _, params in client.asked]

    assert len(set(seeds())) == 6
    assert seeds() == seeds()
    assert not set(seeds()) & set(seeds(seed=1))
    assert not set(seeds()) & set(seeds(problem="q"))


def test_a_group_has_rewards_tags_and_every_sample():
    builder = Builder(extra=lambda found: [0.5 * place for place in range(len(found))])
    assert isinstance(builder, EnvGroupBuilder)
    group = play_group(builder, Client(), 3)
    assert group is not None
    assert group.rewards_G == (1.0, 1.5, 2.0)
    assert (group.problem, group.tags, group.num_failed, group.errors) == ("p", ("kind",), 0, ())
    assert all_closed_once(builder)


def failing(moment: str, *numbers: int, error: Any = None) -> Any:
    async def hook(at, number):
        if at == moment and number in numbers:
            raise error or ValueError("broken")

    return hook


@pytest.mark.parametrize("moment", ["first", "step", "close"])
def test_a_sample_that_fails_is_left_out_and_counted(moment):
    told = []
    builder = Builder(failing(moment, 1))
    group = play_group(builder, Client(), 4, on_failure=lambda *failure: told.append(failure))
    assert group is not None
    assert (len(group.trajectories_G), group.num_failed) == (3, 1)
    assert len(group.errors) == 1
    assert "sample 1" in group.errors[0]
    assert "ValueError: broken" in group.errors[0]
    assert told == [("p", group.errors[0])]
    assert all_closed_once(builder)


def test_a_group_of_which_too_few_are_left_is_given_up():
    builder = Builder(failing("step", 0, 1))
    assert play_group(builder, Client(), 4, min_group_share=0.75) is None
    assert all_closed_once(builder)
    assert play_group(Builder(failing("step", 0)), Client(), 4, min_group_share=0.75) is not None
    assert play_group(Builder(failing("step", 0, 1, 2, 3)), Client(), 4, min_group_share=0.01) is None


def test_a_sample_is_tried_again_with_other_draws():
    client, builder = Client(), Builder(failing("step", 1, 3))
    group = play_group(builder, client, 3, on_error="retry", num_tries=3)
    assert group is not None
    assert (len(group.trajectories_G), group.num_failed, len(group.errors)) == (3, 0, 2)
    assert len(builder.made) == 5
    assert len({params.seed for _, _, params in client.asked}) == 5
    assert all_closed_once(builder)


def test_a_sample_that_fails_in_every_try_is_left_out():
    group = play_group(Builder(failing("step", 1, 3, 4)), Client(), 3, on_error="retry", num_tries=3)
    assert group is not None
    assert (len(group.trajectories_G), group.num_failed, len(group.errors)) == (2, 1, 3)
    assert play_group(Builder(failing("step", *range(9))), Client(), 3, on_error="retry", num_tries=3) is None


@pytest.mark.parametrize("moment", ["first", "step", "close"])
def test_fail_fast_raises_what_failed_and_closes_all(moment):
    builder = Builder(failing(moment, 2))
    with pytest.raises(RolloutError, match=r"p, sample 2.*broken") as raised:
        play_group(builder, Client(), 4, on_error="fail_fast")
    assert isinstance(raised.value.__cause__, ValueError)
    assert isinstance(raised.value, RunError)
    assert all_closed_once(builder)


def test_a_sampler_that_fails_fails_the_sample():
    async def break_third(number):
        if number == 2:
            raise RunError("lost")

    group = play_group(Builder(), Client(hook=break_third), 4)
    assert group is not None
    assert (group.num_failed, len(group.trajectories_G)) == (1, 3)


def test_a_reward_that_is_no_number_is_a_failure():
    class Odd(Builder):
        async def make_envs(self, num_envs):
            made = await super().make_envs(num_envs)

            async def step(action):
                return StepResult(float("nan"), reason=StopReason.COMPLETED)

            made[0].step = step
            return made

    group = play_group(Odd(), Client(), 4)
    assert group is not None
    assert "the reward is nan" in group.errors[0]


def test_an_environment_that_says_it_failed_has_failed():
    class Confessing(Counting):
        async def step(self, action):
            return StepResult(0.0, reason=StopReason.ERROR)

    with pytest.raises(RolloutError, match="says that it failed"):
        play(Confessing(), Client())


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (lambda found: 1 / 0, "ZeroDivisionError"),
        (lambda found: [0.0], "3 trajectories but 1"),
        (lambda found: [float("inf")] * 3, "inf"),
    ],
)
def test_group_rewards_that_fail_cost_the_group(extra, told):
    failures = []
    assert play_group(Builder(extra=extra), Client(), 3, on_failure=lambda *one: failures.append(one)) is None
    assert told in failures[0][1]
    with pytest.raises(RolloutError, match=told):
        play_group(Builder(extra=extra), Client(), 3, on_error="fail_fast")


def test_environments_that_cannot_be_made_cost_the_group():
    class Broken(Builder):
        async def make_envs(self, num_envs):
            raise OSError("no room")

    failures = []
    assert play_group(Broken(), Client(), 2, on_failure=lambda *one: failures.append(one)) is None
    assert len(failures) == 2
    assert "no room" in failures[0][1]
    with pytest.raises(RolloutError, match="no room"):
        play_group(Broken(), Client(), 2, on_error="fail_fast")


def test_too_few_environments_are_a_failure_and_are_closed():
    class Stingy(Builder):
        async def make_envs(self, num_envs):
            return await super().make_envs(num_envs - 1)

    builder = Stingy()
    assert play_group(builder, Client(), 3) is None
    assert all_closed_once(builder)


@pytest.mark.parametrize("moment", ["first", "sample", "step"])
def test_cancellation_closes_every_environment_and_is_passed_on(moment):
    reached = asyncio.Event()

    async def wait(at, number):
        if at == moment and number == 1:
            reached.set()
            await asyncio.Event().wait()

    async def act() -> None:
        client = Client(hook=(lambda number: wait("sample", number)) if moment == "sample" else None)
        task = asyncio.create_task(rollout_group(builder, 3, client, RolloutConfig(timeout_s=60), 0, lambda: 0))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    builder = Builder(wait)
    asyncio.run(act())
    assert len(builder.made) == 3
    assert all_closed_once(builder)


@pytest.mark.parametrize("moment", ["first", "step"])
def test_a_stop_of_the_run_is_never_taken_for_a_failure(moment):
    builder = Builder(failing(moment, 1, error=Interrupted(2)))
    with pytest.raises(Interrupted):
        play_group(builder, Client(), 3)
    assert all_closed_once(builder)


def test_an_episode_alone_keeps_its_error_and_what_led_to_it():
    async def second(at, env):
        if at == "step" and env.steps:
            raise KeyError("gone")

    trajectory = play(Counting(hook=second), Client(), on_error="min_viable")
    assert isinstance(trajectory, Trajectory)
    assert trajectory.reason is StopReason.ERROR
    assert "turn 2: KeyError" in str(trajectory.error)
    assert [t.reward for t in trajectory.transitions] == [1.0, 0.0]


def test_policies_of_failure_say_what_they_keep():
    assert FailurePolicy.min_viable(0.5).keeps(2, 4)
    assert not FailurePolicy.min_viable(0.5).keeps(1, 4)
    assert not FailurePolicy.min_viable(0.0).keeps(0, 4)
    assert FailurePolicy.retry(2).keeps(1, 4)
    with pytest.raises(ValueError, match="range"):
        FailurePolicy.retry(0)
