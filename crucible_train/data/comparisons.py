"""Labelled comparisons as conversations that train a judge: asked which answer is better, it answers with the label.

comparison   {"prompt": text or messages, "answer_a": text, "answer_b": text, "label": "A" | "B" | "Tie"}

Each is learnt in both orders, so that a place is worth nothing; both are trained or both held out. A tie is a label
like the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crucible_train.data.conversations import (
    CONVERSATIONS,
    FORMATS,
    Dialogue,
    Format,
    FormatTable,
    Row,
    check_roles,
    read_row,
    renamed,
)
from crucible_train.data.preferences import COMPARED, read_sides
from crucible_train.data.rows import Reason, SetAside
from crucible_train.errors import DataError, RenderError
from crucible_train.judges import Comparison, conversation_of
from crucible_train.types import Message

COMPARISON = "comparison"
"""The format's name."""


def read_comparison(row: Row) -> Comparison:
    """The comparison of a row.

    Raises:
        SetAside: it says nothing of what is better.
        DataError: a field is wrong, or the roles stand in an order no chat has.
    """
    prompt, first, second, label = read_sides(row)
    a, b = (_answer(name, side) for name, side in (("A", first), ("B", second)))
    check_roles((*prompt, a))
    if a == b and label != "Tie":
        raise SetAside(Reason.EQUAL_SIDES, f"label is {label}, and both answers are the same")
    return Comparison(prompt, a, b, label)


def read_dialogue(row: Row, form: Format[Sequence[Any]], renames: Mapping[str, str]) -> Dialogue:
    """What supervised training makes of a row; as ``read_row``, and comparisons too.

    Raises:
        SetAside: a comparison says nothing of what is better.
        DataError: as ``read_row``.
    """
    if form.name != COMPARISON:
        return read_row(row, form, renames)
    found = read_comparison(renamed(row, form, renames))
    return Dialogue(_asked(found), swapped=_asked(found.swapped()))


def _answer(name: str, messages: Sequence[Message]) -> Message:
    if len(messages) != 1 or messages[0].role != "assistant":
        raise DataError(f"answer {name}: a judge is shown one answer of the assistant, and there are {len(messages)}")
    return messages[0]


def _asked(comparison: Comparison) -> tuple[Message, ...]:
    try:
        return conversation_of(comparison)
    except RenderError as error:
        raise DataError(str(error)) from error


_FORM: Format[Sequence[Any]] = Format(COMPARISON, COMPARED, lambda row: _asked(read_comparison(row)))
SUPERVISED = FormatTable("conversation", (_FORM, *FORMATS), CONVERSATIONS.mapped)
"""What supervised training reads; no other format has a comparison's columns."""
