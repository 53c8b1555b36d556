"""The command line of every flow: words and a YAML file become one checked configuration.

``parse_command`` prints nothing and takes every problem together, so that a user mends them in one go.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, cast

from crucible_train.config.actions import ACTIONS
from crucible_train.config.argv_source import Words, split
from crucible_train.config.base import Section
from crucible_train.config.complaints import validate
from crucible_train.config.fields import Tree, default_of, tree_of
from crucible_train.config.gathering import Gathering
from crucible_train.config.help_text import full_help, short_help
from crucible_train.config.names import find, is_flag
from crucible_train.config.sources import Place, Problem
from crucible_train.config.yaml_source import drop_repeated, flatten, read_file
from crucible_train.errors import ConfigError

T = TypeVar("T", bound=Section)
Action = Literal["run", "dry_run", "help", "help_all", "schema"]


@dataclass(frozen=True)
class Command(Generic[T]):
    """What the user asked for.

    Attributes:
        config: the configuration; the defaults where only a text is asked for.
        action: what to do with it.
        text: what to print for ``help``, ``help_all`` and ``schema``; empty otherwise.
        notes: one line for each name or value of another tool that was understood.
    """

    config: T
    action: Action
    text: str = ""
    notes: tuple[str, ...] = ()


def parse_command(config_type: type[T], argv: Sequence[str], prog: str) -> Command[T]:
    """Read the command line ``argv`` of the program ``prog``, and the file that it names.

    Raises:
        ConfigError: something is wrong; it holds one line for each problem, the file's before the command line's.
    """
    tree = tree_of(config_type)
    words = split(argv, lambda key: is_flag(key, tree), lambda key: find(key, tree) is not None)
    action = cast("Action", next((name for name in ACTIONS if name in words.actions), "run"))
    if action in ("help", "help_all", "schema"):
        return Command(cast("T", default_of(config_type)), action, _text(action, tree, prog))
    gathering = _gather(words, tree, prog)
    config = validate(gathering, Place(words.files[0]) if words.files else Place())
    if gathering.problems or config is None:
        problems = sorted(gathering.problems, key=lambda problem: problem.place.order)
        raise ConfigError([str(problem) for problem in problems])
    return Command(cast("T", config), action, notes=tuple(gathering.notes))


def _text(action: Action, tree: Tree, prog: str) -> str:
    if action == "schema":
        return json.dumps(tree.config_type.model_json_schema(), indent=2, ensure_ascii=False)
    return short_help(tree, prog) if action == "help" else full_help(tree, prog)


def _gather(words: Words, tree: Tree, prog: str) -> Gathering:
    gathering = Gathering(tree, prog)
    for file in words.files:
        node = read_file(file)
        if isinstance(node, Problem):
            gathering.add_all([node])
        elif node is not None:
            gathering.add_all(drop_repeated(node, file))
            gathering.add_all(flatten(node, tree, file))
    gathering.add_all(words.problems)
    gathering.add_all(words.givens)
    return gathering
