"""Prompts of any data set, each answered once and judged by a scorer, a function, or what compares answers."""

import pkgutil
import sys
from collections.abc import Awaitable, Sequence
from functools import partial
from pathlib import Path

from crucible_train import files
from crucible_train.config.base import option
from crucible_train.errors import ConfigError, DataError
from crucible_train.evaluation.scorers import SCORERS
from crucible_train.ports import DatasetStore
from crucible_train.renderers import Renderer
from crucible_train.rl.problem_env import ProblemEnv
from crucible_train.rl.problem_set import FiniteProblems, Problem
from crucible_train.rl.prompts import GroupReward, Prompt, PromptSource, Reward
from crucible_train.types import Message


class PromptOptions(PromptSource):
    """Where prompts come from, and how answers are judged."""

    scorer: str = option("final_answer", f"how an answer is compared with the data's: {', '.join(SCORERS)}")
    reward: str | None = option(
        None,
        "a Python function to judge with instead, as module:function; it gets the prompt and the answer's text. A "
        "change of its file counts as another function, a change of what it imports does not",
    )
    format_coef: float = option(0.1, "what an answer that is cut off costs, 0 or more", ge=0)

    def identity(self) -> tuple[str, ...]:
        """The digests of the files of the reward function: the one it is named in, and the one it is written in."""
        if self.reward is None:
            return ()
        modules = {self.reward.partition(":")[0], getattr(_function(self.reward), "__module__", None)}
        found = (getattr(sys.modules.get(str(name)), "__file__", None) for name in modules)
        return tuple(sorted(files.sha256_file(Path(file)) for file in found if file))


class PromptEnv(ProblemEnv):
    """One prompt."""

    def __init__(self, prompt: Prompt, reward: Reward, renderer: Renderer, format_coef: float) -> None:
        """Ask it."""
        super().__init__(renderer, format_coef=format_coef, tools=prompt.tools)
        self._prompt, self._reward = prompt, reward

    @property
    def question(self) -> str:
        """The last words before the answer."""
        return self._prompt.messages[-1].text

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as the data has it."""
        return self._prompt.messages

    def check_answer(self, text: str) -> float | Awaitable[float]:
        """What the reward function says."""
        return self._reward(self._prompt, text)

    def check_format(self, text: str) -> bool:
        """Any form will do."""
        return True


class Prompts(FiniteProblems[Prompt]):
    """The prompts of a data set.

    Args:
        options: where they come from, and how answers are judged.
        renderer: the model's chat format.
        seed: decides what is held out, and the order.
        store: reads data sets.
        reward: judges an answer in place of what ``options`` say.
        group_reward: judges the answers of a group beside each other; added to the reward of each.

    Raises:
        ConfigError: there is no such scorer or function, or nothing is left to train on.
        DataError: a data set cannot be used, or lacks the answers that a scorer compares with.
    """

    Options = PromptOptions

    def __init__(
        self,
        options: PromptOptions,
        renderer: Renderer,
        seed: int,
        store: DatasetStore,
        *,
        reward: Reward | None = None,
        group_reward: GroupReward | None = None,
    ) -> None:
        """Read the data sets."""
        judge = reward if reward is not None else _reward_of(options)
        prompts, held_out = options.read(store)
        if reward is None and options.reward is None:
            _check_references([*prompts, *(held_out if not isinstance(held_out, int) else ())], options.scorer)

        def build(prompt: Prompt) -> Problem:
            return Problem(
                f"prompts: {prompt.digest}",
                partial(PromptEnv, prompt, judge, renderer, options.format_coef),
                ("prompts",),
                partial(group_reward, prompt) if group_reward is not None else None,
            )

        super().__init__(prompts, lambda prompt: prompt.digest, build, held_out, seed)


def _reward_of(options: PromptOptions) -> Reward:
    if options.reward is not None:
        return _function(options.reward)
    if options.scorer not in SCORERS:
        raise ConfigError(f"env.options.scorer: {options.scorer!r} is unknown; known are {', '.join(SCORERS)}")
    score = SCORERS[options.scorer]
    return lambda prompt, text: score(text, prompt.reference or "")


def _function(name: str) -> Reward:
    if ":" not in name:
        raise ConfigError(f"env.options.reward: {name!r} is not of the form module:function")
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"env.options.reward: {name!r} cannot be found: {error}") from error
    if not callable(found):
        raise ConfigError(f"env.options.reward: {name!r} is not a function")
    return found  # type: ignore[no-any-return]


def _check_references(prompts: Sequence[Prompt], scorer: str) -> None:
    missing = next((prompt for prompt in prompts if prompt.reference is None), None)
    if missing is not None:
        raise DataError(f"{missing.where}: the row has no answer, and {scorer} compares with one; set reward instead")
