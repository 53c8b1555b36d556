"""What a field accepts and what it was given, in words that need no knowledge of Python."""

import re
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from crucible_train.config.fields import container
from crucible_train.config.reading import BOOLEANS, NULLS, number
from crucible_train.config.redaction import REDACTED, hide_secrets, is_private_name

_SHOWN_CHARACTERS = 40
_PAIR = re.compile(r"([\w.-]+)([\"']?\s*:\s*)([^,}\]]+)")
_KINDS = {bool: "true or false", str: "text", type(None): "null", Any: "any value"}


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a field of this type accepts, for example ``a whole number of 1 or more, or null``."""
    kinds = list(_kinds(annotation, tuple(metadata)))
    words: dict[str, None] = {}
    for kind, marks in sorted(kinds, key=lambda kind: kind[0] is type(None)):
        if not (kind is int and (float, marks) in kinds):
            words[_one(kind, marks)] = None
    return _alternatives(list(words))


def _kinds(annotation: Any, metadata: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The types of a union, each with the constraints that hold for it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        annotation, *marks = get_args(annotation)
        flat = (inner for mark in marks for inner in (mark.metadata if isinstance(mark, FieldInfo) else (mark,)))
        yield from _kinds(annotation, (*metadata, *flat))
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part, metadata)
    else:
        yield annotation, metadata


def _one(kind: Any, metadata: tuple[Any, ...]) -> str:
    if kind in (int, float):
        return f"{'a whole number' if kind is int else 'a number'}{_range(metadata, whole=kind is int)}"
    if get_origin(kind) is Literal:
        choices = [_choice(choice) for choice in get_args(kind)]
        return f"one of {_alternatives(choices)}" if len(choices) > 2 else _alternatives(choices)
    shortest = next((mark.min_length for mark in metadata if getattr(mark, "min_length", 0)), 0)
    if kind is str and shortest:
        return f"text of {shortest} or more characters"
    if kind in _KINDS:
        return _KINDS[kind]
    if container(kind, list) is not None:
        return f"a list of {f'{shortest} or more ' if shortest else ''}{_plural(kind) if get_args(kind) else 'values'}"
    if container(kind, dict) is not None:
        return "name: text pairs" if get_args(kind)[1:] == (str,) else "name: value pairs"
    return f"a {getattr(kind, '__name__', str(kind)).lower()}"


def _plural(sequence: Any) -> str:
    nouns = {str: "texts", int: "whole numbers", float: "numbers", bool: "true or false values"}
    return nouns.get(get_args(sequence)[0], "values")


def _choice(choice: Any) -> str:
    return choice if isinstance(choice, str) else {None: "null", True: "true", False: "false"}.get(choice, str(choice))


def _alternatives(parts: list[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    long = any(" or " in part for part in parts)
    return f"{', '.join(parts[:-1])}{', or ' if long else ' or '}{parts[-1]}"


def _range(metadata: tuple[Any, ...], *, whole: bool) -> str:
    names = ("ge", "gt", "le", "lt")
    bounds = {name: getattr(mark, name) for mark in metadata for name in names if hasattr(mark, name)}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        if whole and not {"gt", "lt"} & bounds.keys():
            return f" from {low} to {high}"
        return f" in {'[' if 'ge' in bounds else '('}{low}, {high}{']' if 'le' in bounds else ')'}"
    if low is not None:
        return f" of {low} or more" if "ge" in bounds else f" above {low}"
    if high is not None:
        return f" of at most {high}" if "le" in bounds else f" below {high}"
    return ""


def shown(given: Node | str | Any) -> str:
    """What was given, short enough for one line and without secrets: text in quotes, numbers as they were written."""
    return shorten(hide_secrets(_written(given)))


def shorten(text: str, characters: int = _SHOWN_CHARACTERS) -> str:
    """Cut ``text`` to what an error line has room for, closing the quote or bracket that it opens."""
    if len(text) <= characters:
        return text
    return text[: characters - 4] + "..." + (text[-1] if text[-1] in "'\"]}" else "")


def _hide_pair(pair: re.Match[str]) -> str:
    name, colon, _ = pair.groups()
    return f"{name}{colon}{REDACTED}" if is_private_name(name) else pair[0]


def _value_of(name: str, value: Node) -> str:
    return REDACTED if is_private_name(name) else _written(value)


def _written(given: Any) -> str:
    if isinstance(given, MappingNode):
        pairs = (f"{key.value}: {_value_of(key.value, value)}" for key, value in given.value)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(given, SequenceNode):
        return "[" + ", ".join(_written(item) for item in given.value) + "]"
    if isinstance(given, ScalarNode):
        return repr(given.value) if given.style else _written(given.value)
    text = _PAIR.sub(_hide_pair, str(given)) if str(given)[:1] in ("[", "{") else str(given)
    plain = text in NULLS or text.lower() in BOOLEANS or number(text) is not None or text[:1] in ("[", "{")
    return text if plain and text else repr(text)
