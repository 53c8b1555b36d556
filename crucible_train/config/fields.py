"""A configuration class as a flat table: every field by its dotted path, with its default."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from crucible_train.config.base import Section

REQUIRED = PydanticUndefined


@dataclass(frozen=True)
class Leaf:
    """One field that holds a value. ``default`` is ``REQUIRED`` where there is none."""

    section: str
    name: str
    annotation: Any
    metadata: tuple[Any, ...]
    default: Any
    description: str
    advanced: bool

    @property
    def path(self) -> str:
        """The dotted path, such as ``train.learning_rate``."""
        return join(self.section, self.name)


@dataclass(frozen=True)
class Branch:
    """A section that other fields lie in. The path of the whole configuration is empty."""

    path: str
    description: str


@dataclass(frozen=True)
class Tree:
    """Every field of a configuration class, in the order of its definition."""

    config_type: type[Section]
    leaves: Mapping[str, Leaf]
    branches: Mapping[str, Branch]
    named: Mapping[str, tuple[Leaf, ...]]

    def children(self, section: str) -> list[Leaf]:
        """The fields that lie directly in ``section``."""
        return [leaf for leaf in self.leaves.values() if leaf.section == section]

    def unique(self, name: str) -> Leaf | None:
        """The one field of this bare name, wherever it lies; at the top level it wins over those in sections."""
        found = self.named.get(name, ())
        return self.leaves.get(name) or (found[0] if len(found) == 1 else None)


@lru_cache
def tree_of(config_type: type[Section]) -> Tree:
    """Flatten ``config_type``."""
    branches: dict[str, Branch] = {}
    leaves: dict[str, Leaf] = {}
    for entry in _walk(config_type, default_of(config_type), "", inspect.getdoc(config_type) or ""):
        if isinstance(entry, Leaf):
            leaves[entry.path] = entry
        else:
            branches[entry.path] = entry
    named: dict[str, tuple[Leaf, ...]] = {}
    for leaf in leaves.values():
        named[leaf.name] = (*named.get(leaf.name, ()), leaf)
    return Tree(config_type, leaves, branches, named)


def default_of(config_type: type[Section]) -> Section:
    """An instance that holds every default; a required field is absent from it."""
    try:
        return config_type()
    except ValidationError:
        return config_type.model_construct()


def _walk(config_type: type[Section], default: Section, path: str, description: str) -> Iterator[Branch | Leaf]:
    yield Branch(path, description)
    for name, field in config_type.model_fields.items():
        value = getattr(default, name, REQUIRED)
        nested: Any = field.annotation
        if is_section(nested):
            nested_default = value if isinstance(value, Section) else default_of(nested)
            yield from _walk(nested, nested_default, join(path, name), field.description or "")
        else:
            yield _leaf(path, name, field, value)


def _leaf(section: str, name: str, field: FieldInfo, default: Any) -> Leaf:
    extra = field.json_schema_extra
    advanced = isinstance(extra, dict) and bool(extra.get("advanced"))
    metadata = tuple(field.metadata)
    return Leaf(section, name, field.annotation, metadata, default, field.description or "", advanced)


def join(*parts: str) -> str:
    """A dotted path of those ``parts`` that are not empty."""
    return ".".join(part for part in parts if part)


def is_section(annotation: Any) -> bool:
    """Whether a field of this type is a group of further fields."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def members(annotation: Any) -> tuple[Any, ...]:
    """The types a union is made of, each without its ``Annotated``; a single type is its own only member."""
    annotation = getattr(annotation, "__value__", annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return tuple(member for part in get_args(annotation) for member in members(part))
    return (annotation,)


def container(annotation: Any, kind: type) -> Any | None:
    """The member of ``annotation`` that is a ``list`` or ``dict`` (as ``kind`` says) or, for ``dict``, a model."""
    sequences = (list, tuple, set, frozenset)
    for member in members(annotation):
        origin = get_origin(member) or member
        if not isinstance(origin, type):
            continue
        if issubclass(origin, sequences if kind is list else (dict, Mapping)):
            return member
        if kind is dict and issubclass(origin, BaseModel):
            return member
    return None


def inner(annotation: Any, part: str | int) -> Any:
    """The type of the item at index or key ``part`` of a value of this type; ``Any`` where the type does not say."""
    member = container(annotation, dict if isinstance(part, str) else list)
    if isinstance(member, type) and issubclass(member, BaseModel):
        field = member.model_fields.get(str(part))
        if field is None:
            return Any
        return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    arguments = get_args(member)
    if not arguments:
        return Any
    return arguments[-1] if isinstance(part, str) else arguments[0]
