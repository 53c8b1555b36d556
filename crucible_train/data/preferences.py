r"""Which preference a row means. One entry of ``PREFERENCES`` a format.

pairs        {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}
             without a prompt: conversations that begin alike, or transcripts "\n\nHuman: ...\n\nAssistant: ..."
comparison   {"prompt", "completion_A", "completion_B", "label": "A" | "B" | "Tie"}     (also answer_a and a, and so on)
labelled     {"prompt", "completion", "label": true | false}

What stands before the completions is the prompt, the same for both. A pair that says nothing of what is preferred, be
it a tie, one answer twice or two answers to different prompts, is set aside; it is never read as a win of either side.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_train.data.conversations import (
    COMPLETIONS,
    PROMPTS,
    Format,
    FormatTable,
    Row,
    as_messages,
    check_roles,
    first_of,
    message_list,
    renamed,
    tools_of,
)
from crucible_train.data.rows import Reason, SetAside
from crucible_train.errors import DataError
from crucible_train.judges import LABELS, Label
from crucible_train.types import Message, Preference

ASKED = (*PROMPTS, "messages")
"""Names of the column that holds what both answers of a comparison are to."""
FIRST, SECOND = ("completion_A", "answer_a", "response_a", "a"), ("completion_B", "answer_b", "response_b", "b")
"""Names of the columns that hold the two answers of a comparison."""
EXAMPLE = 'a pair, such as {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"}'
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}

Messages = tuple[Message, ...]


def read_preference(row: Row, form: Format[Preference], renames: Mapping[str, str]) -> Preference:
    """The preference of a row.

    Args:
        row: values by column.
        form: the format to read.
        renames: our column name -> the file's.

    Raises:
        SetAside: it says nothing of what is preferred.
        DataError: a column is missing, a field is wrong, or the roles stand in an order no chat has.
    """
    found = form.read(renamed(row, form, renames))
    for name, completion in (("chosen", found.chosen), ("rejected", found.rejected)):
        if completion is not None:
            _check(name, found.prompt, completion)
    if found.chosen == found.rejected:
        raise SetAside(Reason.EQUAL_SIDES, "both completions are the same")
    return found


def _check(name: str, prompt: Messages, completion: Messages) -> None:
    """Refuse what is no answer to the prompt."""
    asks = next((message.role for message in completion if message.role not in ("assistant", "tool")), None)
    if asks is not None:
        raise SetAside(Reason.DIFFERENT_PROMPTS, f"{name}: a {asks} message stands behind the prompt of both")
    if not prompt:
        raise DataError(f"{name}: nothing stands before the answer")
    if not any(message.role == "assistant" for message in completion):
        raise DataError(f"{name}: the assistant does not answer")
    check_roles((*prompt, *completion))


def _read_pair(row: Row) -> Preference:
    prompt, sides = first_of(row, PROMPTS), {name: row[name] for name in ("chosen", "rejected")}
    if prompt is not None:
        before = _prompt(row, prompt)
        chosen, rejected = (_behind(before, name, value) for name, value in sides.items())
        return Preference(before, chosen, rejected, tools_of(row))
    chosen, rejected = (_whole(row, name, value) for name, value in sides.items())
    num = _num_shared(chosen, rejected)
    return Preference(chosen[:num], chosen[num:], rejected[num:], tools_of(row))


def _read_comparison(row: Row) -> Preference:
    before, first, second, label = read_sides(row)
    if label == "Tie":
        raise SetAside(Reason.TIE, "label is Tie: neither completion is preferred")
    chosen, rejected = (first, second) if label == "A" else (second, first)
    return Preference(before, chosen, rejected, tools_of(row))


def read_sides(row: Row) -> tuple[Messages, Messages, Messages, Label]:
    """The prompt of a comparison, its two answers and its label.

    Raises:
        SetAside: an answer is to another prompt.
        DataError: a field is wrong.
    """
    before, label = _prompt(row, first_of(row, ASKED)), row["label"]
    word = label.strip().lower() if isinstance(label, str) else label
    found = next((known for known in LABELS if known.lower() == word), None)
    if found is None:
        raise DataError(f"label must be A, B or Tie, not {label!r}")
    first, second = (_behind(before, names[0], first_of(row, names)) for names in (FIRST, SECOND))
    return before, first, second, found


def _read_labelled(row: Row) -> Preference:
    before = _prompt(row, first_of(row, PROMPTS))
    completion, label = _behind(before, "completion", first_of(row, COMPLETIONS)), row["label"]
    if not (isinstance(label, bool) or (isinstance(label, int) and label in (0, 1))):
        raise DataError(f"label must be true or false, not {label!r}")
    wanted, unwanted = (completion, None) if label else (None, completion)
    return Preference(before, wanted, unwanted, tools_of(row))


def _prompt(row: Row, value: Any) -> Messages:
    """The messages of a prompt: text, a transcript that ends where the assistant is to speak, or messages."""
    if value is None:
        raise DataError("prompt is null")
    if not isinstance(value, str):
        messages = as_messages(message_list(value, "prompt"))
    elif _TURN.match(value):
        messages = _transcript(value, "prompt")
        if messages[-1].role == "assistant" and not messages[-1].content:
            messages = messages[:-1]
    else:
        messages = (Message("user", value),)
    return (*_system(row), *messages)


def _behind(prompt: Messages, name: str, value: Any) -> Messages:
    """What a completion adds to the prompt; a whole conversation may repeat the prompt first."""
    if value is None:
        raise DataError(f"{name} is null")
    if isinstance(value, str):
        return (Message("assistant", value.strip() if value.startswith(" ") else value),)
    messages = as_messages(message_list(value, name))
    for start in (prompt, tuple(message for message in prompt if message.role != "system")):
        if start and messages[: len(start)] == start:
            return messages[len(start) :]
    if messages and messages[0].role not in ("assistant", "tool"):
        raise SetAside(Reason.DIFFERENT_PROMPTS, f"{name}: it does not begin with the prompt")
    return messages


def _whole(row: Row, name: str, value: Any) -> Messages:
    """A conversation with its prompt."""
    if value is None:
        raise DataError(f"{name} is null")
    if not isinstance(value, str):
        messages = as_messages(message_list(value, name))
    elif _TURN.match(value):
        messages = _transcript(value, name)
    else:
        raise DataError(f"{name} is text and there is no prompt; a whole conversation begins with '\\n\\nHuman:'")
    return (*_system(row), *messages)


def _transcript(text: str, name: str) -> Messages:
    r"""The messages of ``\n\nHuman: ...\n\nAssistant: ...``."""
    parts = _TURN.split(text)
    if parts[0].strip():
        raise DataError(f"{name}: {parts[0].strip()[:40]!r} stands before the first speaker")
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(_SPEAKERS[speaker], said.strip()) for speaker, said in turns)


def _system(row: Row) -> Messages:
    system = row.get("system")
    if system is None or system == "":
        return ()
    if not isinstance(system, str):
        raise DataError(f"system must be text, not {type(system).__name__}")
    return (Message("system", system),)


def _num_shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages two conversations share before one of them answers what the other does not.

    Where one is a beginning of the other, or both are the same, the last answer is no part of the prompt.
    """
    shortest = min(len(chosen), len(rejected))
    num = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    if num == shortest:
        while num and (chosen[num - 1].role in ("assistant", "tool")):
            num -= 1
    return num


COMPARED = (ASKED, FIRST, SECOND, ("label",))
"""The columns of a comparison."""
PREFERENCES: FormatTable[Preference] = FormatTable(
    "preference",
    (
        Format("comparison", COMPARED, _read_comparison),
        Format("pairs", (("chosen",), ("rejected",)), _read_pair),
        Format("labelled", (PROMPTS, COMPLETIONS, ("label",)), _read_labelled),
    ),
    ("chosen", "rejected"),
)
