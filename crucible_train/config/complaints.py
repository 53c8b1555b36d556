"""From pydantic's errors to one line for each field, in plain words and at the place where the value was given."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from crucible_train.config.fields import Leaf, Tree, container, inner, join
from crucible_train.config.gathering import Gathering, Location, Origin, label_of
from crucible_train.config.plain_words import allowed, shown
from crucible_train.config.redaction import REDACTED, hide_secrets, is_private_name
from crucible_train.config.sources import Place, Problem


def validate(gathering: Gathering, default_place: Place) -> BaseModel | None:
    """The configuration that was gathered, or ``None`` and one more problem in ``gathering`` for each wrong field.

    A rule that binds several fields of a section is not run where one of them is wrong, so it is tried again with
    defaults in the place of wrong values, and believed where it speaks of none of those.
    """
    try:
        return gathering.tree.config_type.model_validate(gathering.data())
    except ValidationError as error:
        first = error.errors()
    wrong = frozenset(leaf.path for detail in first if (leaf := _leaf_at(detail["loc"], gathering.tree)) is not None)
    gathering.problems += _field_problems(first, gathering, default_place)
    rules = {_message(detail): detail for detail in first if _is_rule(detail, gathering.tree)}
    try:
        gathering.tree.config_type.model_validate(gathering.data(without=wrong))
    except ValidationError as error:
        names = [path.rpartition(".")[2] for path in wrong]
        for detail in error.errors():
            if _is_rule(detail, gathering.tree) and not any(name in _message(detail) for name in names):
                rules.setdefault(_message(detail), detail)
    gathering.problems += (_rule_problem(detail, gathering, default_place) for detail in rules.values())
    return None


def _leaf_at(location: tuple[str | int, ...], tree: Tree) -> Leaf | None:
    for length in range(len(location), 0, -1):
        leaf = tree.leaves.get(".".join(str(part) for part in location[:length]))
        if leaf is not None:
            return leaf
    return None


def _is_rule(detail: ErrorDetails, tree: Tree) -> bool:
    return _leaf_at(detail["loc"], tree) is None


def _field_problems(details: list[ErrorDetails], gathering: Gathering, default_place: Place) -> Iterator[Problem]:
    found: dict[Location, tuple[Leaf, ErrorDetails]] = {}
    for detail in details:
        leaf = _leaf_at(detail["loc"], gathering.tree)
        if leaf is not None:
            found.setdefault((leaf.path, *_within(detail, leaf, gathering)), (leaf, detail))
    for location, (leaf, detail) in found.items():
        deeper = any(other != location and other[: len(location)] == location for other in found)
        if not deeper:
            origin = gathering.origin(location)
            place = origin.place if origin else default_place
            label = label_of(leaf, location[1:], origin.key if origin else leaf.name)
            yield Problem(place, f"{label}: {_what_is_wrong(leaf, location, detail, origin)}")


def _within(detail: ErrorDetails, leaf: Leaf, gathering: Gathering) -> Location:
    """The keys and indexes of pydantic's location that lead into the value; its names for union members are dropped."""
    value: Any = gathering.values.get(leaf.path, leaf.default)
    parts: list[str | int] = []
    for part in detail["loc"][leaf.path.count(".") + 1 :]:
        if isinstance(value, dict) and (part in value or detail["type"] == "missing"):
            parts.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            parts.append(part)
            value = value[part]
    return tuple(parts)


def _what_is_wrong(leaf: Leaf, location: Location, detail: ErrorDetails, origin: Origin | None) -> str:
    if detail["type"] == "missing":
        return "is required"
    if detail["type"] in ("value_error", "assertion_error"):
        return hide_secrets(_message(detail)).removeprefix(f"{leaf.name} ")
    outer: Any = Any
    annotation, metadata = leaf.annotation, leaf.metadata
    for part in location[1:]:
        outer, annotation, metadata = annotation, inner(annotation, part), ()
    if detail["type"] == "extra_forbidden":
        return f"unknown; the names here are {', '.join(getattr(container(outer, dict), 'model_fields', ()))}"
    private = any(is_private_name(str(name)) for name in (leaf.name, *location[1:]))
    given = REDACTED if private else shown(origin.node if origin else detail["input"])
    return f"must be {allowed(annotation, metadata)}, not {given}"


def _message(detail: ErrorDetails) -> str:
    error = detail.get("ctx", {}).get("error")
    return " ".join(str(error if error is not None else detail["msg"]).split())


def _rule_problem(detail: ErrorDetails, gathering: Gathering, default_place: Place) -> Problem:
    """A broken rule at the field that its message starts with, or else at the section."""
    section = ".".join(str(part) for part in detail["loc"])
    message = hide_secrets(_message(detail))
    name, _, rest = message.partition(" ")
    leaf = gathering.tree.leaves.get(join(section, name)) or gathering.tree.leaves.get(name)
    if leaf is None:
        return Problem(default_place, f"{section}: {message}" if section else message)
    origin = gathering.origin((leaf.path,))
    label = label_of(leaf, (), origin.key if origin else leaf.name)
    return Problem(origin.place if origin else default_place, f"{label}: {rest}")
