"""Problems that are ready to use: one file and one line of the table each."""

import inspect
import pkgutil
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from crucible_train.config.base import Section
from crucible_train.errors import ConfigError
from crucible_train.judges import Asked
from crucible_train.ports import DatasetStore
from crucible_train.renderers import Renderer
from crucible_train.rl.problem_set import ProblemSet

ENVIRONMENTS: Mapping[str, str] = {
    "arithmetic": "crucible_train.rl.environments.arithmetic:Arithmetic",
    "calculator": "crucible_train.rl.environments.calculator:Calculator",
    "code": "crucible_train.rl.environments.code:Code",
    "gsm8k": "crucible_train.rl.environments.gsm8k:Gsm8k",
    "guess_the_number": "crucible_train.rl.environments.guess_the_number:GuessTheNumber",
    "preference": "crucible_train.rl.environments.preference:Preference",
    "prompts": "crucible_train.rl.environments.prompts:Prompts",
    "reasoning_gym": "crucible_train.rl.environments.reasoning_gym:ReasoningGym",
}


def options_of(name: str) -> type[Section]:
    """The options of a set of problems.

    Raises:
        ConfigError: the name is unknown.
    """
    found: type[Section] = _find(name).Options
    return found


def describe(name: str) -> str:
    """What an environment is, in a line.

    Raises:
        ConfigError: the name is unknown.
    """
    kind = _find(name)
    return (sys.modules[kind.__module__].__doc__ or "").partition("\n")[0]


def problems(
    name: str,
    options: Section | Mapping[str, Any],
    renderer: Renderer,
    seed: int,
    store: DatasetStore | None = None,
    judge: Asked | None = None,
) -> ProblemSet:
    """The problems of a name.

    Args:
        name: one of the table.
        options: of its kind, ``options_of``, or values for it by name.
        renderer: the model's chat format.
        seed: decides which problems there are, which are held out, and their order.
        store: reads data sets, for those that stand on one.
        judge: compares answers, for those that are judged so.

    Raises:
        ConfigError: the name or an option is wrong, or a library is missing.
        DataError: a data set cannot be used.
    """
    kind = _find(name)
    read = options if isinstance(options, Section) else read_options(name, options)
    needed = inspect.signature(kind).parameters
    given = {name: value for name, value in (("store", store), ("judge", judge)) if name in needed}
    made: ProblemSet = kind(read, renderer, seed, **given)
    return made


def read_options(name: str, values: Mapping[str, Any]) -> Section:
    """The options of a set of problems, checked.

    Raises:
        ConfigError: the name is unknown, or options are wrong: a line for each.
    """
    try:
        return options_of(name).model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError([f"env.options{_place(one)}: {_words(one)}" for one in error.errors()]) from error


def _find(name: str) -> Any:
    if name not in ENVIRONMENTS:
        raise ConfigError(f"env.name: {name!r} is unknown; known are {', '.join(ENVIRONMENTS)}")
    return pkgutil.resolve_name(ENVIRONMENTS[name])


def _place(problem: Mapping[str, Any]) -> str:
    return "".join(f".{part}" for part in problem["loc"])


def _words(problem: Mapping[str, Any]) -> str:
    """What is wrong, without the words that pydantic puts before ours."""
    text = str(problem["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
