"""Prompts from any data set that conversations are read from."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from crucible_train.config.base import Section, option
from crucible_train.config.redaction import hide_secrets
from crucible_train.data.conversations import Format, detect, named, read_row
from crucible_train.errors import DataError
from crucible_train.ports import DatasetStore, SourceRow
from crucible_train.rl.environment import Trajectory
from crucible_train.rl.problem_set import digest
from crucible_train.types import Message

BUILT_IN = "gsm8k-sample"
_SAMPLE = Path(__file__).parents[1] / "assets" / "gsm8k" / "sample.jsonl.gz"
_NUM_SHOWN = 5


class PromptSource(Section):
    """Where prompts come from."""

    dataset: str = option(BUILT_IN, "a file, a folder, a hub id, any fsspec URL, or the built-in sample's name")
    columns: dict[str, str] = option({}, "renames before reading: our column name -> the file's", advanced=True)
    max_rows: int | None = option(None, "read only this many rows, 1 or more; null reads all", ge=1, advanced=True)
    held_out_dataset: str | None = option(None, "another data set, whose prompts are held out; null: num_held_out is")
    num_held_out: int = option(
        64, "prompts that are held out where no data set of them is named, 0 or more; at most half of them are", ge=0
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets to read, as a store finds them: what is trained, then what is held out if that is named."""
        named_ones = (self.dataset, self.held_out_dataset)
        return tuple(str(_SAMPLE) if one == BUILT_IN else one for one in named_ones if one is not None)

    def read(self, store: DatasetStore) -> "tuple[Sequence[Prompt], Sequence[Prompt] | int]":
        """The prompts, and those that are held out: others, or how many of these.

        Raises:
            DataError: a data set cannot be used.
        """
        prompts, *others = (read_prompts(store, source, self.columns, self.max_rows) for source in self.sources)
        return prompts, others[0] if others else self.num_held_out


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that is to be answered.

    Attributes:
        messages: what is answered.
        reference: the answer the data gives, or None where it gives none.
        tools: OpenAI-style declarations of what the assistant may call.
        where: the place it was read from.
        values: the row it was read from, by column.
    """

    messages: tuple[Message, ...]
    reference: str | None
    tools: tuple[Mapping[str, Any], ...] = ()
    where: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The same for the same messages and tools, whatever the answer."""
        return digest([[message.to_dict() for message in self.messages], list(self.tools)])


Reward = Callable[[Prompt, str], float | Awaitable[float]]
"""What an answer to a prompt is worth, 0 to 1 by custom; it may be a coroutine function."""
GroupReward = Callable[[Prompt, Sequence[Trajectory]], Awaitable[Sequence[float]]]
"""What each answer to a prompt is worth for its place among the others."""


def read_prompts(
    store: DatasetStore, source: str, columns: Mapping[str, str], max_rows: int | None
) -> Sequence[Prompt]:
    """The prompts of a data set: its conversations up to the assistant's last answer, or to their end.

    Raises:
        DataError: the source cannot be read, it has no rows, or rows cannot be used; the text names their places.
    """
    name = hide_secrets(source)
    prompts: list[Prompt] = []
    problems: list[str] = []
    form: Format[Any] | None = None
    for row in islice(store.rows(source), max_rows):
        try:
            form = form or _format_of(row, columns)
            prompts.append(_prompt(row, form, columns))
        except DataError as error:
            problems.append(f"{row.where}: {error}")
            if form is None:
                break  # the others have the same columns
    if problems:
        more = f" (the first {_NUM_SHOWN} are shown)" if len(problems) > _NUM_SHOWN else ""
        lines = "\n".join(problems[:_NUM_SHOWN])
        raise DataError(f"{lines}\ndataset: {name}: {len(problems)} rows cannot be used{more}")
    if not prompts:
        raise DataError(f"dataset: {name}: it holds no rows")
    return prompts


def _format_of(row: SourceRow, columns: Mapping[str, str]) -> Format[Any]:
    values = _values(row)
    if _is_prompt_alone([*columns, *values]):
        return named("prompt_completion")
    return detect([*columns, *values])


def _prompt(row: SourceRow, form: Format[Any], columns: Mapping[str, str]) -> Prompt:
    values = dict(_values(row))
    if is_alone := form.name == "prompt_completion" and _is_prompt_alone([*columns, *values]):
        values["completion"] = ""
    dialogue = read_row(values, form, columns)
    *before, last = dialogue.messages
    if last.role == "assistant":
        if not before:
            raise DataError("there is nothing before the assistant's answer")
        reference = None if is_alone else last.text
        return Prompt(tuple(before), reference, dialogue.tools, row.where, _values(row))
    return Prompt(dialogue.messages, None, dialogue.tools, row.where, _values(row))


def _values(row: SourceRow) -> Mapping[str, Any]:
    if row.values is None:
        raise DataError(row.problem or "it cannot be read")
    return row.values


def _is_prompt_alone(present: Sequence[str]) -> bool:
    """Whether there is a prompt and no answer, which no format of conversations has."""
    prompts, completions = named("prompt_completion").needs
    others = any(found.columns(present) for found in (named("messages"), named("sharegpt"), named("alpaca")))
    return not others and any(name in present for name in prompts) and not any(name in present for name in completions)
