"""Collecting what was given, from the file and then from the command line, under our own names."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from yaml import MappingNode, Node, SequenceNode

from crucible_train.config.fields import REQUIRED, Leaf, Tree, inner
from crucible_train.config.names import Match, find, unknown
from crucible_train.config.plain_words import shorten
from crucible_train.config.reading import node_of, read
from crucible_train.config.redaction import hide_secrets, is_private_name
from crucible_train.config.sources import Given, Place, Problem
from crucible_train.config.suggestions import section_of_names
from crucible_train.config.translation import Translation, translate_name, translate_value
from crucible_train.config.yaml_source import flatten, place_of, section_hint

_SECRETS = (
    "not a field; secrets are taken from the environment (HF_TOKEN for the hub), never from the command line or a file"
)
Location = tuple[str | int, ...]
"""A field's path, then the keys and indexes within its value: ``("data.columns", "prompt")``."""


@dataclass(frozen=True)
class Origin:
    """Where the value at a location came from, how it was written and under which name."""

    place: Place
    node: Node
    key: str


@dataclass
class Gathering:
    """The values so far, where each came from, and what is wrong with those that could not be taken."""

    tree: Tree
    prog: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Location, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)

    def add_all(self, items: Iterable[Given | Problem]) -> None:
        """Take every value and keep every problem."""
        for item in items:
            if isinstance(item, Problem):
                self.problems.append(item)
            elif isinstance(item.value, str) and item.path in self.tree.branches:
                self._add_section(item, item.value)
            else:
                self._add(item)

    def data(self, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The nested dictionary that the configuration is made of: the defaults, and what was given over them."""
        nested: dict[str, Any] = {}
        for branch in self.tree.branches:
            _dictionary_at(nested, branch)
        for path, leaf in self.tree.leaves.items():
            given = self.values.get(path, REQUIRED) if path not in without else REQUIRED
            value = leaf.default if given is REQUIRED else given
            if value is not REQUIRED:
                _dictionary_at(nested, leaf.section)[leaf.name] = value
        return nested

    def origin(self, location: Location) -> Origin | None:
        """The origin of the value at ``location``, or of the innermost value round it."""
        for length in range(len(location), 0, -1):
            if location[:length] in self.origins:
                return self.origins[location[:length]]
        return None

    def _refuse(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))

    def _add_section(self, given: Given, text: str) -> None:
        node = node_of(text, dict[str, Any])
        if isinstance(node, MappingNode):
            self.add_all(replace(item, place=given.place) for item in flatten(node, self.tree, "", given.path))
        else:
            self._refuse(given.place, f"{given.key}: {section_hint(given.path, self.tree)}")

    def _add(self, given: Given) -> None:
        match = find(given.key, self.tree)
        if match is None or (match.other is not None and isinstance(given.value, MappingNode)):
            self._refuse(given.place, self._unknown(given))
            return
        node = node_of(given.value, match.annotation) if isinstance(given.value, str) else given.value
        if match.other is not None:
            self._take(given, match, translate_name(match.other, match.leaf, node))
        elif match.leaf is not None:
            meant = Translation(node) if match.rest else translate_value(match.leaf, node)
            self._take(given, match, meant)

    def _take(self, given: Given, match: Match, meant: Translation) -> None:
        """Keep what was meant, and say what was translated, or why it cannot be."""
        if meant.hint:
            self._refuse(given.place, f"{given.key}: {meant.hint}")
        elif meant.node is None or match.leaf is None or self._store(given, match.leaf, match.rest, meant.node):
            self.notes |= {meant.note: None} if meant.note else {}

    def _unknown(self, given: Given) -> str:
        key = shorten(hide_secrets(given.key), 80)
        if given.path in ("config", "dry_run"):
            return f"{key}: not a field; give it on the command line as --{given.path.replace('_', '-')}"
        if is_private_name(given.path.rpartition(".")[2]):
            return f"{key}: {_SECRETS}"
        if isinstance(given.value, MappingNode):
            names = [name.value for name, _ in given.value.value]
            if suggestion := section_of_names(names, self.tree):
                return f"{key}: unknown; {suggestion}"
        return unknown(key, given.section, self.tree, self.prog)

    def _store(self, given: Given, leaf: Leaf, rest: tuple[str, ...], node: Node) -> bool:
        """Keep a value; false where the same file gave one for the same field before."""
        location: Location = (leaf.path, *rest)
        label = label_of(leaf, rest, given.key)
        before = next((origin for where, origin in self.origins.items() if where[: len(location)] == location), None)
        if before is not None and before.place.file == given.place.file:
            if given.place.file:
                self._refuse(given.place, f"{label}: given twice, first on line {before.place.line}")
                return False
            self.notes[f"{label}: given more than once; the last one is used"] = None
        self._keep(leaf, rest, node)
        for where, part, place in _parts(node, location, given.place):
            self.origins[where] = Origin(place, part, given.key)
        return True

    def _keep(self, leaf: Leaf, rest: tuple[str, ...], node: Node) -> None:
        if rest:
            before = self.values.get(leaf.path, leaf.default)
            pairs = before if isinstance(before, dict) else {}
            self.values[leaf.path] = {**pairs, rest[0]: read(node, inner(leaf.annotation, rest[0]))}
        else:
            self.origins = {where: origin for where, origin in self.origins.items() if where[0] != leaf.path}
            self.values[leaf.path] = read(node, leaf.annotation)


def label_of(leaf: Leaf, rest: tuple[str | int, ...], key: str) -> str:
    """How a message names a field: by its path, and by the other name it was given under."""
    path = leaf.path + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
    names = key.replace("-", "_").split(".")
    return path if leaf.name in names else f"{path} (given as {key})"


def _parts(node: Node, location: Location, place: Place) -> Iterator[tuple[Location, Node, Place]]:
    """A value and everything in it, each at its own line."""
    yield location, node, place
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            here = place_of(item, place.file) if place.file else place
            yield from _parts(item, (*location, index), here)
    elif isinstance(node, MappingNode):
        for key, item in node.value:
            here = place_of(key, place.file) if place.file else place
            yield from _parts(item, (*location, key.value), here)


def _dictionary_at(nested: dict[str, Any], path: str) -> dict[str, Any]:
    for name in path.split(".") if path else ():
        nested = nested.setdefault(name, {})
    return nested
