"""From another tool's name or value to ours, with a note that says so, or a hint where it has no counterpart."""

from dataclasses import dataclass

from yaml import Node, ScalarNode

from crucible_train.config.aliases import OTHER_WORDS, OtherName
from crucible_train.config.fields import Leaf
from crucible_train.config.plain_words import shown
from crucible_train.config.reading import BOOLEANS, node_of, number


@dataclass(frozen=True)
class Translation:
    """What was meant: a value for the field, if any, and a note; or a hint that says why there is none."""

    node: Node | None = None
    note: str = ""
    hint: str = ""


def translate_name(other: OtherName, leaf: Leaf | None, node: Node) -> Translation:
    """What another tool's setting means here; ``leaf`` is the field of ours that it is about, if any."""
    if other.always:
        return Translation(note=f"{other.name}: {other.always}")
    if other.words is None and leaf is not None:
        return _renamed(other, leaf, node)
    word = next((word for word in _words(node) if word in (other.words or {})), None)
    if other.words is None or word is None:
        return _no_counterpart(other, node)
    ours = other.words[word]
    if ours is None or leaf is None:
        return Translation(note=f"{other.name}: {word} is always so here")
    return Translation(node_of(ours, leaf.annotation), f"{other.name}: {word or 'null'} read as {leaf.path}={ours}")


def translate_value(leaf: Leaf, node: Node) -> Translation:
    """Our word for another tool's value of the same field; the value itself where it is ours or in double quotes."""
    word, ours = _our_word(leaf, node)
    if not ours or getattr(node, "style", None) == '"':
        return Translation(node)
    return Translation(node_of(ours, leaf.annotation), f"{leaf.path}: {word} read as {ours}")


def _our_word(leaf: Leaf, node: Node) -> tuple[str, str]:
    """Another tool's word for a value of ``leaf``, and ours; both empty where ``node`` is not such a word."""
    known = OTHER_WORDS.get(leaf.path, {})
    return next(((word, known[word]) for word in _words(node) if word in known), ("", ""))


def _renamed(other: OtherName, leaf: Leaf, node: Node) -> Translation:
    if other.share_only:
        value = number(node.value) if isinstance(node, ScalarNode) else None
        if value is None or not 0 <= value < 1:
            return _no_counterpart(other, node)
    word, ours = _our_word(leaf, node)
    if ours:
        return Translation(node_of(ours, leaf.annotation), f"{other.name}: {word} read as {leaf.path}={ours}")
    return Translation(node, f"{other.name}: read as {leaf.path}")


def _no_counterpart(other: OtherName, node: Node) -> Translation:
    given = f"{shown(node)} " if other.words or other.share_only else ""
    return Translation(hint=f"{given}has no counterpart here; {other.hint}")


def _words(node: Node) -> tuple[str, ...]:
    """The words that a scalar may be known by: as written in lower case, and ``true`` for ``yes`` and the like."""
    if not isinstance(node, ScalarNode):
        return ()
    word: str = node.value.strip().lower()
    return (word, str(BOOLEANS[word]).lower()) if word in BOOLEANS else (word,)
