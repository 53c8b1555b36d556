"""What is kept on disk between the stages: conversations and rendered examples, as memory-mapped Arrow files."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crucible_train import files
from crucible_train.data.conversations import Dialogue
from crucible_train.data.examples import Example
from crucible_train.errors import DataError
from crucible_train.types import Message, conversation

ROWS_A_BATCH = 1024
_DIALOGUES = pa.schema([(name, pa.string()) for name in ("messages", "tools", "swapped", "where")])
EXAMPLES = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        ("row", pa.int64()),
        ("num_bytes", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class StoredDialogue:
    """A conversation as it is written: JSON texts, None where there is nothing, and the place it came from."""

    messages: str
    tools: str | None
    swapped: str | None
    where: str

    @classmethod
    def of(cls, dialogue: Dialogue, where: str) -> "StoredDialogue":
        """Write a conversation as text.

        Raises:
            DataError: it holds a value that JSON has no form for, such as the bytes of a picture or a date.
        """

        def text(messages: Sequence[Message]) -> str:
            return json.dumps([message.to_dict() for message in messages], ensure_ascii=False)

        try:
            tools = json.dumps(dialogue.tools, ensure_ascii=False) if dialogue.tools else None
            swapped = text(dialogue.swapped) if dialogue.swapped else None
            return cls(text(dialogue.messages), tools, swapped, where)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"a value cannot be stored as JSON: {error}") from error


def write_dialogues(path: Path, dialogues: Iterable[StoredDialogue]) -> int:
    """Write conversations; how many there were."""

    def batches() -> Iterator[pa.RecordBatch]:
        iterator = iter(dialogues)
        while rows := list(islice(iterator, ROWS_A_BATCH)):
            columns = [[getattr(row, name) for row in rows] for name in _DIALOGUES.names]
            yield pa.record_batch(columns, schema=_DIALOGUES)

    return write_table(path, _DIALOGUES, batches())


def example_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    """Rendered examples as a batch of their table."""
    tokens = list_column([example.tokens_T for example in examples], pa.int32())
    weights = list_column([example.weights_T for example in examples], pa.float32())
    rows = column(np.array([example.row for example in examples], np.int64), pa.int64())
    num_bytes = column(np.array([example.num_bytes for example in examples], np.int64), pa.int64())
    return pa.record_batch([tokens, weights, rows, num_bytes], schema=EXAMPLES)


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write rendered examples; how many there were."""
    iterator = iter(examples)
    return write_example_batches(path, map(example_batch, iter(lambda: list(islice(iterator, ROWS_A_BATCH)), [])))


def write_example_batches(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches of rendered examples; how many examples there were."""
    return write_table(path, EXAMPLES, batches)


class Table:
    """A memory-mapped Arrow file whose rows are found without reading the others."""

    def __init__(self, path: Path) -> None:
        """Map a file."""
        self._source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(self._source)
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = [0, *accumulate(batch.num_rows for batch in self._batches)]

    def __len__(self) -> int:
        """How many rows there are."""
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._starts, index) - 1
        return self._batches[number], index - self._starts[number]


class Dialogues(Table):
    """Conversations by number."""

    def __getitem__(self, index: int) -> Dialogue:
        """The conversation of a row."""
        batch, place = self._place(index)
        messages, tools, swapped = (batch.column(name)[place].as_py() for name in ("messages", "tools", "swapped"))
        return Dialogue(
            conversation(json.loads(messages)),
            tuple(json.loads(tools)) if tools is not None else (),
            conversation(json.loads(swapped)) if swapped is not None else (),
        )

    def where(self, index: int) -> str:
        """The place a row came from."""
        batch, place = self._place(index)
        return str(batch.column("where")[place].as_py())


class Examples(Table):
    """Rendered examples by number; tokens and weights are views of the mapped file."""

    def __getitem__(self, index: int) -> Example:
        """One example."""
        batch, place = self._place(index)
        tokens, weights = (view(batch.column(name), place) for name in ("tokens", "weights"))
        return Example(tokens, weights, batch.column("row")[place].as_py(), batch.column("num_bytes")[place].as_py())

    def __iter__(self) -> Iterator[Example]:
        """All examples in order."""
        return (self[index] for index in range(len(self)))

    def num_tokens(self) -> npt.NDArray[np.int64]:
        """The length of every example, without reading the tokens."""
        parts = [np.diff(batch.column("tokens").offsets.to_numpy()) for batch in self._batches]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches of a table; how many rows there were."""
    num_rows = 0
    with files.atomic_open(path) as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows


def list_column(arrays: Sequence[npt.NDArray[Any]], kind: pa.DataType) -> pa.ListArray:
    """A column of lists of these values."""
    offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
    values = np.concatenate(arrays) if arrays else np.zeros(0, kind.to_pandas_dtype())
    return pa.ListArray.from_arrays(column(offsets, pa.int32()), column(values, kind))


def column(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """A column of these values; ``pa.array`` would import pandas first."""
    buffer = pa.py_buffer(np.ascontiguousarray(values, kind.to_pandas_dtype()))
    return pa.Array.from_buffers(kind, values.size, [None, buffer])


def view(column: pa.ListArray, place: int) -> npt.NDArray[Any]:
    """One list of a column, without a copy."""
    start, end = column.offsets[place].as_py(), column.offsets[place + 1].as_py()
    view: npt.NDArray[Any] = column.values.slice(start, end - start).to_numpy(zero_copy_only=True)
    return view
