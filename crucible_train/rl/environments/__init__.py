"""Problems that are ready to use: one file and one line of the table each."""

import inspect
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from crucible_train.config.base import Section
from crucible_train.config.complaints import validate
from crucible_train.config.fields import tree_of
from crucible_train.config.gathering import Gathering
from crucible_train.config.sources import Place
from crucible_train.config.suggestions import nearest
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


@runtime_checkable
class Identified(Protocol):
    """Options whose problems or rewards stand on something that is neither ours nor a data set."""

    def identity(self) -> Sequence[str]:
        """What it is, so that another is told from it: digests, versions.

        Raises:
            ConfigError: it cannot be found.
        """


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
    tree = tree_of(options_of(name))
    unknown = [f"{key}: unknown; {_hint(key, tree.leaves)}" for key in values if key not in tree.leaves]
    known = {key: value for key, value in values.items() if key in tree.leaves}
    gathering = Gathering(tree, "", values=known)
    found = validate(gathering, Place())
    wrong = unknown + [problem.text for problem in gathering.problems]
    if wrong or not isinstance(found, Section):
        raise ConfigError([f"env.options.{text}" for text in wrong])
    return found


def _find(name: str) -> Any:
    if name not in ENVIRONMENTS:
        raise ConfigError(f"env.name: {name!r} is unknown; known are {', '.join(ENVIRONMENTS)}")
    return pkgutil.resolve_name(ENVIRONMENTS[name])


def _hint(key: str, known: Iterable[str]) -> str:
    return nearest(key, known) or f"the names here are {', '.join(known)}"
