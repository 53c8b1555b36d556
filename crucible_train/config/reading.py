"""From what was written to a Python value: the type of the field decides what a text means.

So ``run_name: 007`` is a text, ``learning_rate: 1e-4`` a number (YAML 1.1 calls it a text), and ``on`` is true only
where a yes or no is asked. A text that does not fit its field stays a text, and the validation that follows refuses it.
"""

import math
import re
import sys
from typing import Any, Literal, get_args, get_origin

from yaml import MappingNode, Node, ScalarNode, SequenceNode, YAMLError

from crucible_train.config.fields import container, inner, members
from crucible_train.config.yaml_source import compose, drop_repeated

NULLS = frozenset({"null", "Null", "NULL", "~", ""})
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*)?(\.[0-9_]*)?([eE][-+]?[0-9]+)?", re.ASCII)
_UNREADABLE = object()


def read(node: Node, annotation: Any) -> Any:
    """The value that ``node`` holds for a field of type ``annotation``."""
    if isinstance(node, SequenceNode):
        return [read(item, inner(annotation, index)) for index, item in enumerate(node.value)]
    if isinstance(node, MappingNode):
        return {key.value: read(value, inner(annotation, key.value)) for key, value in node.value}
    assert isinstance(node, ScalarNode)
    return _scalar(node.value, node.style is not None, annotation)


def read_text(text: str, annotation: Any) -> Any:
    """The value that a word of the command line holds for a field of type ``annotation``."""
    return read(node_of(text, annotation), annotation)


def node_of(text: str, annotation: Any) -> Node:
    """A word of the command line as YAML would hold it, so that both are read alike.

    A list or pairs in YAML's own brackets are opened where the field can hold them, a text in double quotes loses them,
    and ``null`` is a text where the field takes texts but not null. Nothing after the ``=`` is an empty text or list.
    """
    kinds = members(annotation)
    holds_several = Any in kinds or any(container(annotation, kind) is not None for kind in (list, dict))
    opens = holds_several and text.strip()[:1] in ("[", "{")
    if opens or (len(text) > 1 and text[0] == text[-1] == '"'):
        node = _composed(text)
        if node is not None:
            return node
    if not text and str not in kinds and container(annotation, list) is not None:
        return SequenceNode("tag:yaml.org,2002:seq", [])
    is_text = not text or (text in NULLS and str in kinds and type(None) not in kinds)
    return ScalarNode("tag:yaml.org,2002:str", text, style='"' if is_text else None)


def _composed(text: str) -> Node | None:
    try:
        node = compose(text)
    except YAMLError:
        return None
    return None if node is None or any(drop_repeated(node, "")) else node


def number(text: str) -> int | float | None:
    """The finite number that ``text`` writes, whole where it has neither point nor exponent, or ``None``."""
    text = text.strip()
    if not (text and _NUMBER.fullmatch(text)):
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _scalar(text: str, quoted: bool, annotation: Any) -> Any:
    kinds = members(annotation)
    accepts_text = str in kinds or Any in kinds
    if quoted and accepts_text:
        return text
    value = _UNREADABLE if quoted and not text else _typed(text, kinds)
    if value is not _UNREADABLE:
        return value
    sequence = container(annotation, list)
    one_value = text[:1] in ("[", "{") or (text in NULLS and text)
    if sequence is not None and not one_value and (not accepts_text or "," in text):
        return _split(text, quoted, inner(sequence, 0))
    if not quoted and text in NULLS and str in kinds:
        return None
    return text


def _typed(text: str, kinds: tuple[Any, ...]) -> Any:
    """The value that is not a plain text, if ``kinds`` has a member that ``text`` fits."""
    choices = (choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind))
    for choice in choices:
        if _choice_fits(text, choice):
            return choice
    only_typed = str not in kinds and Any not in kinds
    if _takes(type(None), kinds) and (text in NULLS or (only_typed and text.lower() == "none")):
        return None
    words = BOOLEANS if only_typed else {"true": True, "false": False}
    if _takes(bool, kinds) and text.strip().lower() in words:
        return words[text.strip().lower()]
    return _numeric(text, kinds)


def _takes(kind: type, kinds: tuple[Any, ...]) -> bool:
    return kind in kinds or Any in kinds


def _choice_fits(text: str, choice: Any) -> bool:
    if isinstance(choice, bool):
        return BOOLEANS.get(text.lower()) is choice
    return text in NULLS if choice is None else text == str(choice)


def _numeric(text: str, kinds: tuple[Any, ...]) -> Any:
    value = number(text)
    if value is None:
        return _UNREADABLE
    if Any in kinds:
        return value
    if int in kinds and (isinstance(value, int) or (float not in kinds and value.is_integer())):
        return int(value)
    return float(value) if float in kinds and abs(value) <= sys.float_info.max else _UNREADABLE


def _split(text: str, quoted: bool, item_type: Any) -> list[Any]:
    if quoted:
        return [_scalar(text, True, item_type)]
    return [_scalar(item.strip(), False, item_type) for item in text.split(",")] if text.strip() else []
