"""Which conversation a row means. One entry of ``FORMATS`` a format.

messages            {"messages": [{"role", "content"}, ...], "tools": [...]}
sharegpt            {"conversations": [{"from": "human" | "gpt" | ..., "value"}, ...], "system": "..."}
prompt_completion   {"prompt": text or messages, "completion": text or messages}     (also question and answer)
alpaca              {"instruction", "input", "output", "system"}
"""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from crucible_train.errors import DataError, RenderError
from crucible_train.types import Message, conversation

Row = Mapping[str, Any]
T = TypeVar("T")

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}
PROMPTS = ("prompt", "question", "query", "problem")
COMPLETIONS = ("completion", "response", "answer", "solution")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation that was read, and the tools its assistant may call.

    ``swapped`` is the same comparison with its answers in the other order, where it is one.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    swapped: tuple[Message, ...] = ()

    @property
    def orders(self) -> tuple[tuple[Message, ...], ...]:
        """All that is trained of it: the conversation, or both orders of a comparison."""
        return (self.messages, self.swapped) if self.swapped else (self.messages,)


@dataclass(frozen=True, slots=True)
class Format(Generic[T]):
    """A format of rows: the columns it needs, and how a row is read."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    """For each needed column, the names it goes by."""
    read: Callable[[Row], T]
    """What a row means, such as its messages."""

    def columns(self, present: Sequence[str]) -> tuple[str, ...] | None:
        """The columns of a row that this format would read, or None if one is missing."""
        found = tuple(next((name for name in names if name in present), None) for names in self.needs)
        return None if None in found else found  # type: ignore[return-value]


def described(name: str, columns: Sequence[str]) -> str:
    """A format and the columns it was read from; once where the only column has the format's name."""
    return name if list(columns) == [name] else f"{name} ({', '.join(columns)})"


@dataclass(frozen=True, slots=True)
class FormatTable(Generic[T]):
    """The formats in which one kind of thing is written; the first whose columns are there is taken.

    ``kind`` names it, and ``mapped`` holds the columns that a user who has others is told to map.
    """

    kind: str
    formats: tuple[Format[T], ...]
    mapped: tuple[str, str]

    def detect(self, present: Sequence[str]) -> Format[T]:
        """The first format whose columns are there.

        Raises:
            DataError: none is; the text says what was found, what is taken, and the line to add.
        """
        for form in self.formats:
            if form.columns(present) is not None:
                return form
        taken = "; ".join(f"{form.name}: {' and '.join(names[0] for names in form.needs)}" for form in self.formats)
        found = ", ".join(present) or "none"
        first, second = [*present, "YOUR_COLUMN", "YOUR_COLUMN"][:2]
        raise DataError(
            f"the columns are {found}, and no {self.kind} format has them. Taken are {taken}. "
            f"To map yours, add: data.columns={{{self.mapped[0]}: {first}, {self.mapped[1]}: {second}}}"
        )

    def named(self, name: str) -> Format[T]:
        """The format of that name."""
        return next(form for form in self.formats if form.name == name)


def detect(present: Sequence[str]) -> Format[Sequence[Any]]:
    """The first conversation format whose columns are there.

    Raises:
        DataError: as ``FormatTable.detect``.
    """
    return CONVERSATIONS.detect(present)


def named(name: str) -> Format[Sequence[Any]]:
    """The conversation format of that name."""
    return CONVERSATIONS.named(name)


def read_row(row: Row, form: Format[Sequence[Any]], renames: Mapping[str, str]) -> Dialogue:
    """The conversation of a row.

    Args:
        row: values by column.
        form: the format to read.
        renames: our column name -> the file's.

    Raises:
        DataError: a column is missing, a field is wrong, or the roles stand in an order no chat has.
    """
    row = renamed(row, form, renames)
    messages = as_messages(form.read(row))
    check_roles(messages)
    return Dialogue(messages, tools_of(row))


def renamed(row: Row, form: Format[Any], renames: Mapping[str, str]) -> Row:
    """The row with our names of columns.

    Raises:
        DataError: a column that is named, or that the format needs, is missing.
    """
    absent = next((theirs for theirs in renames.values() if theirs not in row), None)
    if absent is not None:
        raise DataError(f"data.columns names a column {absent!r}, but the row has {', '.join(row) or 'none'}")
    kept = {column: value for column, value in row.items() if column not in renames.values()}
    row = kept | {ours: row[theirs] for ours, theirs in renames.items()}
    if form.columns(list(row)) is None:
        missing = next(names[0] for names in form.needs if not any(name in row for name in names))
        ours = next(
            (f"data.columns reads it as {ours!r}; " for ours, theirs in renames.items() if theirs == missing), ""
        )
        raise DataError(f"column {missing!r} is missing; {ours}the row has {', '.join(row) or 'none'}")
    return row


def as_messages(values: Sequence[Any]) -> tuple[Message, ...]:
    """Messages from dictionaries.

    Raises:
        DataError: a field is missing or wrong.
    """
    try:
        return conversation(values)
    except RenderError as error:
        raise DataError(str(error)) from error


def check_roles(messages: Sequence[Message]) -> None:
    """Refuse roles that are unknown or stand in an order no chat has.

    Raises:
        DataError: the text names the message.
    """
    previous = ""
    for index, message in enumerate(messages):
        role = message.role
        if role not in ROLES:
            near = difflib.get_close_matches(role, ROLES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(ROLES)}"
            raise DataError(f"message {index}: role {role!r} is unknown{hint}")
        if role == "tool" and previous not in {"assistant", "tool"}:
            raise DataError(f"message {index}: role order: a tool answers, but no assistant has called it")
        if role == "assistant" and previous == "":
            raise DataError(f"message {index}: role order: the assistant speaks before any user")
        if role in {"user", "assistant"} and role == previous:
            raise DataError(f"message {index}: role order: two {role} messages in a row")
        if role not in {"system", "developer"}:
            previous = role


def _read_messages(row: Row) -> Sequence[Any]:
    return message_list(row["messages"], "messages")


def _read_sharegpt(row: Row) -> Sequence[Any]:
    messages: list[Any] = []
    if row.get("system"):
        messages.append({"role": "system", "content": row["system"]})
    for index, turn in enumerate(message_list(row["conversations"], "conversations")):
        if not isinstance(turn, Mapping):
            raise DataError(f"conversations[{index}] must be an object with from and value, not {type(turn).__name__}")
        if "role" in turn and "content" in turn:
            messages.append(turn)
            continue
        speaker = turn.get("from")
        if "value" not in turn or not isinstance(speaker, str):
            raise DataError(f"conversations[{index}] must have from and value; it has {', '.join(turn)}")
        messages.append({"role": _SHAREGPT_ROLES.get(speaker.lower(), speaker), "content": turn["value"]})
    return messages


def _read_prompt_completion(row: Row) -> Sequence[Any]:
    if isinstance(row.get("label"), bool):  # an unwanted answer would be learnt like a wanted one
        raise DataError(
            "label says whether the completion is wanted: flows.dpo preference.loss_type=kto learns from both kinds; "
            "to learn every completion, leave the column out"
        )
    prompt, completion = first_of(row, PROMPTS), first_of(row, COMPLETIONS)
    messages: list[Any] = []
    if row.get("system"):
        messages.append({"role": "system", "content": row["system"]})
    for value, role, column in ((prompt, "user", "prompt"), (completion, "assistant", "completion")):
        if isinstance(value, str):
            messages.append({"role": role, "content": value})
        elif value is None:
            raise DataError(f"{column} is null")
        else:
            messages.extend(message_list(value, column))
    return messages


def first_of(row: Row, names: Sequence[str]) -> Any:
    """The value of the first of these columns that is there; None where none is."""
    return next((row[name] for name in names if name in row), None)


def _read_alpaca(row: Row) -> Sequence[Any]:
    messages: list[Any] = []
    for column in ("instruction", "output"):
        if not isinstance(row[column], str):
            raise DataError(f"{column} must be text, not {type(row[column]).__name__}")
    if row.get("system"):
        messages.append({"role": "system", "content": row["system"]})
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        raise DataError(f"input must be text, not {type(given).__name__}")
    question = f"{row['instruction']}\n\n{given}" if given else row["instruction"]
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def message_list(value: Any, column: str) -> Sequence[Any]:
    """The list that a column holds, be it one or its JSON text.

    Raises:
        DataError: it holds something else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)  # tables often hold lists as JSON text
        except (ValueError, RecursionError):
            raise DataError(f"{column} must be a list of messages, not text") from None
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise DataError(f"{column} must be a list of messages, not {type(value).__name__}")
    return value


def tools_of(row: Row) -> tuple[Mapping[str, Any], ...]:
    """What the row says may be called.

    Raises:
        DataError: it is not a list of objects.
    """
    value = row.get("tools")
    if value is None:
        return ()
    tools = message_list(value, "tools")
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError("tools must be a list of objects")
    return tuple(tools)


FORMATS = (
    Format("messages", (("messages",),), _read_messages),
    Format("sharegpt", (("conversations",),), _read_sharegpt),
    Format("alpaca", (("instruction",), ("output",)), _read_alpaca),
    Format("prompt_completion", (PROMPTS, COMPLETIONS), _read_prompt_completion),
)
CONVERSATIONS = FormatTable("conversation", FORMATS, ("prompt", "completion"))
