"""Whatever bytes a file holds, the answer is conversations or an error of ours; and no row is lost uncounted."""

import gzip
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crucible_train.adapters.row_store.store import RowStore
from crucible_train.config.sections import DataConfig
from crucible_train.data.preparation import CONVERSATIONS, QUARANTINE, prepare
from crucible_train.data.tables import Dialogues
from crucible_train.errors import DataError

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "instruction", "output", "system", "tools"]
)
MESSAGE_KEYS = st.sampled_from(["role", "content", "from", "value", "tool_calls", "name", "trainable", "thinking"])
NEARLY_A_MESSAGE = st.dictionaries(
    MESSAGE_KEYS, JSON | st.sampled_from(["user", "assistant", "human", "gpt", "tool"]), max_size=4
)
NEARLY_A_ROW = st.dictionaries(KEYS, JSON | st.lists(NEARLY_A_MESSAGE, max_size=3), max_size=3)


def outcome(name: str, data: bytes, **options: object) -> int | None:
    """How many rows came out, good and bad together, or None where the file was refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        RowStore().describe(str(path))
        try:
            summary = prepare(RowStore(), str(path), DataConfig(on_bad_row="quarantine", **options), path.parent)
        except DataError as error:
            str(error).encode()  # it can be printed
            return None
        dialogues = Dialogues(path.parent / CONVERSATIONS)
        assert [bool(dialogues[row].messages) for row in range(len(dialogues))] == [True] * summary["num_rows"]
        set_aside = (path.parent / QUARANTINE).read_text().splitlines()
        assert len(set_aside) == summary["num_bad_rows"] == sum(summary["bad_rows"].values())
        return summary["num_rows"] + summary["num_bad_rows"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.jsonl.xz", "a.json.zst"])
@QUICK
@given(data=st.binary(max_size=200))
def test_any_bytes(name, data):
    outcome(name, data)


@QUICK
@given(rows=st.lists(NEARLY_A_ROW | JSON, max_size=4))
def test_rows_that_nearly_are_conversations(rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert outcome("a.jsonl", data, format="messages") in (len(rows), None)
    outcome("a.jsonl", data)
    outcome("a.json", json.dumps(rows).encode())


@QUICK
@given(text=st.text(alphabet='a,"\r\n\té', max_size=60))
def test_any_table(text):
    outcome("a.csv", b"prompt,completion\n" + text.encode())
    outcome("a.csv", text.encode("latin-1"))


GOOD = b"".join(b'{"prompt": "question %d", "completion": "answer %d"}\n' % (n, n) for n in range(30))


def parquet() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in GOOD.splitlines()]), buffer)
    return buffer.getvalue().to_pybytes()


WHOLE = {"a.jsonl": GOOD, "a.jsonl.gz": gzip.compress(GOOD, mtime=0), "a.parquet": parquet()}


@pytest.mark.parametrize("name", WHOLE)
@QUICK
@given(data=st.data())
def test_a_file_with_a_few_bytes_changed_or_cut_off(name, data):
    damaged = io.BytesIO(WHOLE[name])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged.seek(data.draw(st.integers(0, len(WHOLE[name]) - 1)))
        damaged.write(data.draw(st.binary(min_size=1, max_size=4)))
    outcome(name, damaged.getvalue()[: data.draw(st.integers(0, len(WHOLE[name])))])
    outcome(name, damaged.getvalue())


@QUICK
@given(
    lines=st.lists(st.sampled_from([GOOD.splitlines()[0], b"{", b"", b"  ", b"[]", b"\xff", b'{"a": 1}']), max_size=12)
)
def test_every_line_that_is_not_blank_comes_out_once(lines):
    data = b"\n".join(lines)
    total = outcome("a.jsonl", data, format="prompt_completion")
    assert total in (sum(bool(line.strip()) for line in lines), None)
