"""Prompts of any data set, whose answers a preference model judges beside each other or beside the data's own.

    group        reward = scale * mean of its scores beside the other answers of its group  -scale to scale
    reference    reward = scale * score beside the answer of the data                       -scale to scale

Held-out prompts are answered once, so they are always judged beside the data's answers.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from crucible_train.config.base import option
from crucible_train.config.judge import JudgeConfig
from crucible_train.errors import ConfigError, DataError
from crucible_train.judges import Asked, Judgement, judged_alone, position_bias
from crucible_train.ports import DatasetStore
from crucible_train.renderers import Renderer
from crucible_train.rl.environment import StepResult
from crucible_train.rl.preference_reward import by_preference
from crucible_train.rl.problem_env import ProblemEnv
from crucible_train.rl.problem_set import FiniteProblems, Problem
from crucible_train.rl.prompts import Prompt, PromptSource
from crucible_train.types import Message, TokensWithLogprobs


class JudgeSource(JudgeConfig, PromptSource):
    """Where prompts come from, and which model judges."""


class PreferenceOptions(JudgeSource):
    """What is answered, who judges, and beside what."""

    against: Literal["group", "reference"] = option(
        "group", "an answer is judged beside the others of its group, or beside the data's answer"
    )
    scale: float = option(1.0, "reward of an answer that is preferred without doubt, above 0", gt=0)
    format_coef: float = option(0.1, "what an answer that is cut off costs, 0 or more", ge=0)


class PreferenceEnv(ProblemEnv):
    """One prompt; ``judge`` compares its answer with the data's, None leaves it to the group."""

    def __init__(self, prompt: Prompt, judge: Asked | None, renderer: Renderer, options: PreferenceOptions) -> None:
        """Ask it."""
        super().__init__(renderer, format_coef=options.format_coef, tools=prompt.tools)
        self._prompt, self._judge, self._scale = prompt, judge, options.scale
        self._found: Judgement | None = None

    @property
    def question(self) -> str:
        """The last words before the answer."""
        return self._prompt.messages[-1].text

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as the data has it."""
        return self._prompt.messages

    async def check_answer(self, text: str) -> float:
        """What the judge says of it beside the data's answer; nothing where the group decides."""
        if self._judge is None:
            return 0.0
        mine, reference = Message("assistant", text), Message("assistant", self._prompt.reference or "")
        self._found = await judged_alone(self._judge, self.messages, mine, reference)
        return self._scale * self._found.score

    def check_format(self, text: str) -> bool:
        """Any form will do."""
        return True

    async def step(self, action: TokensWithLogprobs) -> StepResult:
        """Judge the answer, and tell how far the judge heeded the order."""
        result = await super().step(action)
        parts = {"format": result.reward_parts["format"]}
        if self._found is None:
            return replace(result, reward_parts=parts)
        bias = position_bias([self._found])
        metrics = {"position_bias": bias.bias, "position_flips": bias.flip_share}
        return replace(result, reward_parts={"preferred": self._found.score, **parts}, metrics=metrics)


class Preference(FiniteProblems[Prompt]):
    """The prompts of a data set, judged by preference.

    Args:
        options: where they come from, who judges, and beside what.
        renderer: the model's chat format.
        seed: decides what is held out, and the order.
        store: reads data sets.
        judge: what compares answers.

    Raises:
        ConfigError: nothing is left to train on, or there is no judge once an answer is to be judged.
        DataError: a data set cannot be used, or lacks the answers that are compared with.
    """

    Options = PreferenceOptions

    def __init__(
        self, options: PreferenceOptions, renderer: Renderer, seed: int, store: DatasetStore, judge: Asked | None = None
    ) -> None:
        """Read the data sets."""
        asked: Asked = _no_judge if judge is None else judge
        prompts, held_out = options.read(store)

        def build(prompt: Prompt, *, by_group: bool) -> Problem:
            return Problem(
                f"preference: {prompt.digest}",
                partial(PreferenceEnv, prompt, None if by_group else asked, renderer, options),
                ("preference",),
                partial(by_preference(asked, options.scale), prompt) if by_group else None,
            )

        super().__init__(
            prompts,
            lambda prompt: prompt.digest,
            partial(build, by_group=options.against == "group"),
            held_out,
            seed,
            build_held_out=partial(build, by_group=False),
        )
        compared = [] if options.against == "group" else self.trained_items
        _check_references([*compared, *self.held_out_items])


def _no_judge(*_: object) -> float:
    raise ConfigError("env.name: preference has no judge here")


def _check_references(prompts: Sequence[Prompt]) -> None:
    missing = next((prompt for prompt in prompts if prompt.reference is None), None)
    if missing is not None:
        raise DataError(
            f"{missing.where}: the row has no answer to be judged beside; give one, or set env.options.num_held_out=0 "
            "and against=group"
        )
