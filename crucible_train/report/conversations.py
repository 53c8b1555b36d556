"""Rendered conversations for people: in a terminal, and as one HTML file without script or network."""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.text import Text

from crucible_train.renderers.view import ShownToken
from crucible_train.report.template import render

_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class ShownFormat:
    """A renderer, and the control tokens that the conversations shown with it hold, with their ids."""

    renderer: str
    options: Mapping[str, Any]
    tokenizer: str
    stops: Sequence[tuple[str, int | None]]
    controls: Mapping[str, int]
    train_on: str


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One row of a data set: the examples it becomes, or why it becomes none."""

    where: str
    examples: Sequence[Sequence[ShownToken]]
    problem: str | None = None


def num_tokens(tokens: Iterable[ShownToken]) -> int:
    """How many tokens are shown."""
    return sum(len(token.ids) for token in tokens)


def num_trained(tokens: Iterable[ShownToken]) -> int:
    """How many of them are trained."""
    return num_tokens(token for token in tokens if token.is_trained)


def described(shown: ShownFormat) -> list[tuple[str, str]]:
    """What there is to say of a format, as names and texts."""
    stops = ", ".join(json.dumps(text) if number is None else f"{text} ({number})" for text, number in shown.stops)
    controls = ", ".join(f"{name} ({number})" for name, number in shown.controls.items())
    options = json.dumps(shown.options, ensure_ascii=False, default=str) if shown.options else "none"
    return [
        ("renderer", shown.renderer),
        ("options", visible(options)),
        ("tokenizer", shown.tokenizer),
        ("stops at", stops or "nothing of its own"),
        ("controls", controls or "none"),
        ("trained", shown.train_on),
    ]


def visible(text: str) -> str:
    """The text with what a terminal would obey, or what would turn its order round, as something to be seen."""
    return "".join(map(_visible, text)) if not text.isprintable() else text


def colourless(tokens: Sequence[ShownToken], *, marks_controls: bool = True) -> str:
    """Tokens as plain text: what is trained between ⟦ and ⟧, control tokens between ‹ and ›."""
    parts = []
    for is_trained, group in groupby(tokens, key=lambda token: token.is_trained):
        text = "".join(
            f"‹{_named(token)}›" if token.is_control and marks_controls else _named(token) for token in group
        )
        parts.append(f"⟦{text}⟧" if is_trained else text)
    return "".join(parts)


def coloured(tokens: Sequence[ShownToken]) -> Text:
    """The same for a terminal that has colours: what is trained is green and bold, control tokens are reversed."""
    text = Text()
    for token in tokens:
        style = "bold green" if token.is_trained else ""
        text.append(_named(token), style=f"{style} reverse" if token.is_control else style)
    return text


def page(shown: ShownFormat, rows: Sequence[ShownRow], title: str) -> str:
    """Everything as HTML. What comes from data is escaped."""
    laid_out = [
        (row.where, row.problem, [(num_tokens(some), num_trained(some), _grouped(some)) for some in row.examples])
        for row in rows
    ]
    return render("conversations.html.jinja", title=title, facts=described(shown), rows=laid_out)


def _grouped(tokens: Sequence[ShownToken]) -> list[tuple[bool, list[tuple[list[str], str, bool]]]]:
    """Runs of trained or other tokens; each token as its lines, its ids and whether it is a control token."""
    return [
        (is_trained, [(_named(token).split("\n"), _ids(token), token.is_control) for token in group])
        for is_trained, group in groupby(tokens, key=lambda token: token.is_trained)
    ]


def _named(token: ShownToken) -> str:
    times = f"×{len(token.ids)}" if token.is_control and len(token.ids) > 1 else ""
    return visible(token.text) + times


def _ids(token: ShownToken) -> str:
    return str(token.ids[0]) if token.is_control else " ".join(map(str, token.ids))


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if unicodedata.category(character) == "Cc" or character in _TURNING:
        return f"⟨U+{code:04X}⟩"
    return character
