"""From a value to the text that reads back as that value: for overrides, YAML files and help."""

from typing import Any

from pydantic import BaseModel

from crucible_train.config.reading import BOOLEANS, read_text

_WORDS_WITH_MEANING = frozenset({*BOOLEANS, "null", "none", "y", "n", "inf", "infinity", "nan"})


def as_text(value: Any, annotation: Any) -> str:
    """What to write after ``field=`` on the command line to get ``value``."""
    if isinstance(value, str):
        return value if _reads_as(value, value, annotation) else quoted(value)
    return flow(value)


def flow(value: Any) -> str:
    """``value`` on one line of YAML, for any place where the type of the field decides what a text means."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    return text if _is_simple(text) else quoted(text)


def quoted(text: str) -> str:
    """``text`` in double quotes, as YAML reads them; what cannot be printed is escaped."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _reads_as(text: str, value: Any, annotation: Any) -> bool:
    found = read_text(text, annotation)
    return type(found) is type(value) and found == value


def _is_simple(text: str) -> bool:
    """Whether ``text`` needs no quotes, whatever the type of its field: no number, no truth, no null."""
    return (
        text.isascii()
        and text[:1].isalpha()
        and text.replace("_", "").replace("-", "").replace("/", "").replace(".", "").isalnum()
        and text.lower() not in _WORDS_WITH_MEANING
    )
