"""Any task of reasoning-gym (an optional library), with problems it generates and its own scorer.

A scorer of that library may do what it likes with an answer: some hand it to sympy. They are not run in a sandbox.
"""

import difflib
import importlib
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crucible_train.config.base import Section, option
from crucible_train.errors import ConfigError
from crucible_train.renderers import Renderer
from crucible_train.rl.problem_env import ProblemEnv
from crucible_train.rl.problem_set import DrawnProblems, Problem, digest

_OPEN, _CLOSE = "<answer>", "</answer>"
_INSTRUCTION = f"Give the final answer between {_OPEN} and {_CLOSE}."
_LIBRARY = "reasoning_gym"


class ReasoningGymOptions(Section):
    """Which task, and how it is set."""

    task: str = option("chain_sum", "name of a task of reasoning-gym")
    task_options: dict[str, Any] = option({}, "options of the task, by name; size and seed are not among them")
    num_problems: int = option(10_000, "problems the task has, 1 or more; a few tasks make all in advance", ge=1)
    format_coef: float = option(0.1, "what an answer without its marks costs, 0 or more", ge=0)
    num_held_out: int = option(64, "different problems that are held out, 0 or more", ge=0)

    def identity(self) -> tuple[str, ...]:
        """The version of the library, which makes the problems and judges answers."""
        try:
            return (f"{_LIBRARY} {version(_LIBRARY)}",)
        except PackageNotFoundError as error:
            raise _missing(error) from error


class ReasoningGymEnv(ProblemEnv):
    """One problem."""

    def __init__(self, task: Any, entry: Mapping[str, Any], options: ReasoningGymOptions, renderer: Renderer) -> None:
        """Ask it."""
        super().__init__(renderer, format_coef=options.format_coef)
        self._task, self._entry = task, entry

    @property
    def question(self) -> str:
        """The problem, and the form of its answer."""
        return f"{self._entry['question']}\n\n{_INSTRUCTION}"

    def check_answer(self, text: str) -> float:
        """What the task's own scorer says of what stands between the marks, or of all where there are none."""
        try:
            return float(self._task.score_answer(_marked(text), self._entry))
        except Exception:  # noqa: BLE001 - the scorers of many tasks raise on an answer of another form, which is wrong
            return 0.0

    def check_format(self, text: str) -> bool:
        """Whether there is one answer between marks."""
        return text.count(_OPEN) == 1 and _CLOSE in text.partition(_OPEN)[2]


class ReasoningGym(DrawnProblems[Mapping[str, Any]]):
    """Problems of a task, without end.

    Raises:
        ConfigError: the library is not installed, or it has no such task, option or value.
    """

    Options = ReasoningGymOptions

    def __init__(self, options: ReasoningGymOptions, renderer: Renderer, seed: int) -> None:
        """Make the task, and draw what is held out."""
        task = _task(options)

        def draw(drawn: int) -> Mapping[str, Any]:
            entry: Mapping[str, Any] = task[drawn % options.num_problems]
            return entry

        def build(entry: Mapping[str, Any]) -> Problem:
            name = f"reasoning_gym: {options.task} {digest(entry['question'])}"
            make = partial(ReasoningGymEnv, task, entry, options, renderer)
            return Problem(name, make, ("reasoning_gym", f"reasoning_gym/{options.task}"))

        super().__init__(draw, lambda entry: entry["question"], build, options.num_held_out, seed)


def _marked(text: str) -> str:
    if _OPEN in text:
        text = text.rpartition(_OPEN)[2].partition(_CLOSE)[0]
    return text.strip()


def _missing(error: ImportError) -> ConfigError:
    advice = 'run in the checkout: pip install -c constraints.txt -e ".[rl-tasks]"'
    return ConfigError(f"env.name: reasoning_gym: {error}; {advice}")


def _task(options: ReasoningGymOptions) -> Any:
    try:
        library = importlib.import_module(_LIBRARY)
    except ImportError as error:
        raise _missing(error) from error
    known = importlib.import_module(f"{_LIBRARY}.factory").DATASETS
    if options.task not in known:
        near = difflib.get_close_matches(options.task, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {len(known)}, such as chain_sum"
        raise ConfigError(f"env.options.task: {options.task!r} is unknown{hint}")
    try:
        # the seed of the library moves all problems; which of them are drawn is ours to say
        return library.create_dataset(options.task, seed=0, size=options.num_problems, **options.task_options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"env.options.task_options: {options.task}: {error}") from error
