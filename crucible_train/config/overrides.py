"""How a configuration differs from the defaults, and the words or the file that reproduce it."""

from collections.abc import Iterator
from typing import Any

from crucible_train.config.aliases import OTHER_WORDS
from crucible_train.config.base import Section
from crucible_train.config.fields import REQUIRED, Leaf, tree_of
from crucible_train.config.reading import BOOLEANS
from crucible_train.config.writing import as_text, flow, quoted


def differences(config: Section) -> dict[str, Any]:
    """The fields whose value is not the default, by their dotted paths."""
    return {leaf.path: value for leaf, value in _values(config) if leaf.default is REQUIRED or value != leaf.default}


def to_overrides(config: Section) -> list[str]:
    """Words for the command line that give this configuration; quote them with ``shlex.join``."""
    changed = differences(config)
    return [f"{leaf.path}={_text(leaf, value)}" for leaf, value in _values(config) if leaf.path in changed]


def to_yaml(config: Section, *, only_changed: bool = False) -> str:
    """The configuration as a YAML file that reads back as the same one.

    Args:
        config: what is written.
        only_changed: leave out the fields that have their default.
    """
    changed = differences(config)
    lines: list[str] = []
    open_sections: tuple[str, ...] = ()
    for leaf, value in _values(config):
        if only_changed and leaf.path not in changed:
            continue
        sections = tuple(leaf.section.split(".")) if leaf.section else ()
        if sections != open_sections:
            lines += _headings(open_sections, sections)
            open_sections = sections
        text = quoted(value) if _is_other_word(leaf, value) else flow(value)
        lines.append(f"{'  ' * len(sections)}{leaf.name}: {text}")
    return "\n".join(lines) + "\n" if lines else ""


def _text(leaf: Leaf, value: Any) -> str:
    return quoted(value) if _is_other_word(leaf, value) else as_text(value, leaf.annotation)


def _is_other_word(leaf: Leaf, value: Any) -> bool:
    """Whether a text would be taken for another tool's word if it stood without quotes."""
    words = (value.strip().lower(), str(BOOLEANS.get(value.strip().lower())).lower()) if isinstance(value, str) else ()
    return any(word in OTHER_WORDS.get(leaf.path, {}) for word in words)


def _headings(before: tuple[str, ...], after: tuple[str, ...]) -> Iterator[str]:
    shared = 0
    while shared < min(len(before), len(after)) and before[shared] == after[shared]:
        shared += 1
    for depth, name in enumerate(after[shared:], start=shared):
        yield f"{'  ' * depth}{name}:"


def _values(config: Section) -> Iterator[tuple[Leaf, Any]]:
    for leaf in tree_of(type(config)).leaves.values():
        value: Any = config
        for name in leaf.path.split("."):
            value = getattr(value, name)
        yield leaf, value
