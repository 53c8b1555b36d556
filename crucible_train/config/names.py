"""What a name that the user wrote refers to."""

from dataclasses import dataclass
from typing import Any

from crucible_train.config.aliases import OTHER_NAMES, OtherName
from crucible_train.config.fields import Leaf, Tree, container, inner, members
from crucible_train.config.suggestions import did_you_mean


@dataclass(frozen=True)
class Match:
    """A field, the names within it (for pairs such as ``data.columns.prompt``), and the other tool's name, if used."""

    leaf: Leaf | None
    rest: tuple[str, ...] = ()
    other: OtherName | None = None

    @property
    def annotation(self) -> Any:
        """The type of the value that is given under this name."""
        if self.leaf is None:
            return Any
        return inner(self.leaf.annotation, self.rest[0]) if self.rest else self.leaf.annotation


def find(key: str, tree: Tree) -> Match | None:
    """The field that ``key`` names: by its path, its bare name where that is unique, or another tool's name for it."""
    parts = key.split(".")
    names = [part.replace("-", "_") for part in parts]
    for length in range(len(names), 0, -1):
        leaf = tree.leaves.get(".".join(names[:length]))
        if leaf is not None:
            return _within(leaf, parts[length:])
    leaf = tree.unique(names[0]) if names[0] not in tree.branches else None
    if leaf is not None:
        return _within(leaf, parts[1:])
    return _by_other_name(names, tree)


def ambiguous(key: str, tree: Tree) -> tuple[Leaf, ...]:
    """The fields of several sections that a bare ``key`` could mean."""
    found = tree.named.get(key.replace("-", "_"), ())
    return found if len(found) > 1 else ()


def is_flag(key: str, tree: Tree) -> bool:
    """Whether ``key`` is a yes-or-no question, so that it may stand alone for yes."""
    match = find(key, tree)
    if match is None:
        return False
    if match.other is not None and match.other.words is not None:
        return not match.other.words or not {"true", "false"}.isdisjoint(match.other.words)
    if match.other is not None and match.other.always:
        return True
    kinds = members(match.annotation)
    return bool in kinds and str not in kinds


def unknown(key: str, section: str, tree: Tree, prog: str) -> str:
    """What to say of a ``key`` that names nothing."""
    if several := ambiguous(key, tree):
        return f"{key}: could be {' or '.join(leaf.path for leaf in several)}; write one of them"
    suggestion = did_you_mean(key, section, tree) or f"`{prog} --help` lists every field"
    return f"{key}: unknown; {suggestion}"


def _within(leaf: Leaf, rest: list[str]) -> Match | None:
    if not rest:
        return Match(leaf)
    return Match(leaf, (".".join(rest),)) if container(leaf.annotation, dict) is not None else None


def _by_other_name(names: list[str], tree: Tree) -> Match | None:
    """Another tool's name counts at the top level and in the section of the field that it means."""
    *sections, name = names
    other = OTHER_NAMES.get(name)
    if other is None or not other.known(tree):
        return None
    target = other.target(tree)
    leaf = tree.leaves[target] if target else None
    section = ".".join(sections)
    belongs = not section or (leaf.section == section if leaf else section in tree.branches)
    return Match(leaf, (), other) if belongs else None
