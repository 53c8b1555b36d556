"""The same rows in every form a file can have, behind every kind of address, are the same conversations."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from crucible_train.adapters.row_store.store import RowStore
from crucible_train.errors import DataError

TEXTS = [(f"What is {i}?", f"It is {i}, né {i}.") for i in range(7)]
ROWS = [{"prompt": prompt, "completion": completion} for prompt, completion in TEXTS]
CONVERSATIONS = [[{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c in TEXTS]


def jsonl(rows: list[dict[str, str]] = ROWS, end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def table(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "completion"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet(**options: int) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer, **options)
    return buffer.getvalue().to_pybytes()


def zstandard(data: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as file:
        file.write(data)
    return buffer.getvalue().to_pybytes()


FORMS: dict[str, Callable[[], bytes]] = {
    "rows.jsonl": jsonl,
    "no_end.jsonl": lambda: jsonl().rstrip(b"\n"),
    "bom.jsonl": lambda: b"\xef\xbb\xbf" + jsonl(),
    "crlf.jsonl": lambda: jsonl(end="\r\n"),
    "blank_lines.jsonl": lambda: b"\n\n" + jsonl(end="\n  \n"),
    "other_suffix.ndjson": jsonl,
    "UPPER.JSONL": jsonl,
    "array.json": lambda: json.dumps(ROWS, indent=1).encode(),
    "array_bom.json": lambda: b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "wrapped.json": lambda: json.dumps({"version": 1, "data": ROWS}).encode(),
    "really_lines.json": jsonl,
    "rows.csv": lambda: table(","),
    "bom.csv": lambda: b"\xef\xbb\xbf" + table(","),
    "blank_lines.csv": lambda: table(",").replace(b"\r\n", b"\r\n\r\n"),
    "rows.tsv": lambda: table("\t"),
    "rows.parquet": parquet,
    "row_groups.parquet": lambda: parquet(row_group_size=2),
    "rows.jsonl.gz": lambda: gzip.compress(jsonl()),
    "members.jsonl.gz": lambda: gzip.compress(jsonl(ROWS[:3])) + gzip.compress(jsonl(ROWS[3:])),
    "rows.jsonl.bz2": lambda: bz2.compress(jsonl()),
    "rows.jsonl.xz": lambda: lzma.compress(jsonl()),
    "rows.jsonl.lzma": lambda: lzma.compress(jsonl(), format=lzma.FORMAT_ALONE),
    "rows.jsonl.zst": lambda: zstandard(jsonl()),
    "rows.csv.gz": lambda: gzip.compress(table(",")),
    "array.json.xz": lambda: lzma.compress(json.dumps(ROWS).encode()),
    "rows.parquet.zst": lambda: zstandard(parquet()),
    "odd [1]*#?%20::name.jsonl": jsonl,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_any_form_gives_the_same_conversations(name, tmp_path, prepared):
    (tmp_path / name).write_bytes(FORMS[name]())
    found = prepared(tmp_path / name)
    assert found.conversations == CONVERSATIONS
    assert found.summary["num_rows"] == 7
    assert found.summary["num_bad_rows"] == 0


def test_a_folder_is_read_in_the_order_of_its_names_without_what_is_hidden_or_of_no_known_kind(tmp_path, prepared):
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS[2:4])))
    (folder / "a.jsonl").write_bytes(jsonl(ROWS[:2]))
    (folder / "more" / "c.jsonl").write_bytes(jsonl(ROWS[4:]))
    for other in (".a.jsonl", "_SUCCESS.jsonl", "README.md"):
        (folder / other).write_bytes(jsonl())
    found = prepared(folder)
    assert found.conversations == CONVERSATIONS
    assert found.dialogues.where(4) == f"{folder}/more/c.jsonl:1"


def test_a_folder_of_two_kinds_or_of_none_says_what_it_holds(tmp_path):
    (tmp_path / "a.bin").touch()
    with pytest.raises(DataError, match=r"the folder holds a\.bin; taken are \.jsonl, \.ndjson, \.json, \.csv"):
        RowStore().describe(str(tmp_path))
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(DataError, match=r"the folder mixes \.csv, \.jsonl; name the files of one kind"):
        RowStore().describe(str(tmp_path))


@pytest.mark.parametrize("row", [{"messages": CONVERSATIONS[0]}, {"messages": CONVERSATIONS[0], "tools": []}])
def test_a_json_file_of_one_conversation_is_one_row(row, tmp_path, prepared):
    (tmp_path / "one.json").write_text(json.dumps(row))
    assert prepared(tmp_path / "one.json").conversations == [CONVERSATIONS[0]]


@pytest.fixture
def in_memory():
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet", "rows.csv"])
def test_urls_are_read_like_paths(name, tmp_path, prepared, in_memory, s3):
    data = FORMS[name]()
    (tmp_path / name).write_bytes(data)
    in_memory.pipe_file(f"/set/{name}", data)
    fsspec.filesystem("s3").pipe_file(f"{s3}/set/{name}", data)
    addresses = [f"file://{tmp_path / name}", f"memory://set/{name}", "memory://set", f"{s3}/set/{name}", f"{s3}/set"]
    for address in addresses:
        assert prepared(address).conversations == CONVERSATIONS, address


def test_what_the_store_says_of_a_url_names_it(s3):
    filesystem = fsspec.filesystem("s3")
    filesystem.pipe_file(f"{s3}/set/a.jsonl", jsonl())
    info = RowStore().describe(f"{s3}/set")
    assert info.files == (f"{s3}/set/a.jsonl",)
    assert info.num_bytes == len(jsonl())
    assert next(RowStore().rows(f"{s3}/set")).where == f"{s3}/set/a.jsonl:1"
    filesystem.pipe_file(f"{s3}/set/a.jsonl", jsonl() + b"\n")
    assert RowStore().describe(f"{s3}/set").sha256 != info.sha256


def test_only_so_many_rows_are_read(prepared):
    assert prepared(jsonl(), max_rows=3).conversations == CONVERSATIONS[:3]
    assert prepared(jsonl(), max_rows=99).conversations == CONVERSATIONS


def test_a_table_cell_may_be_longer_than_the_librarys_own_limit(tmp_path, prepared):
    long = "x" * 200_000
    (tmp_path / "rows.csv").write_text(f"prompt,completion\nq,{long}\n")
    assert prepared(tmp_path / "rows.csv").conversations[0][1]["content"] == long


MISSING = {
    "validation.csv": "",
    "rowz.jsonl": "; did you mean {dir}/rows.jsonl?",
    "no/rows.jsonl": "; the folder {dir}/no does not exist",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_is_named_and_a_near_name_is_offered(name, tmp_path):
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(DataError) as caught:
        RowStore().describe(str(tmp_path / name))
    hint = MISSING[name].format(dir=tmp_path)
    assert str(caught.value) == f"dataset: {tmp_path}/{name}: there is no such file or folder{hint}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "no name is given"),
        ("~nobody-here/rows.jsonl", "home directory"),
        ("x" * 5000, "File name too long"),
        ("./a\0b.jsonl", "no such file"),
        ("nosuch://a/rows.jsonl", "Protocol not known: nosuch"),
        ("memory://nothing/rows.jsonl", "there is no such file or folder"),
        ("http://127.0.0.1:9/rows.jsonl", "Cannot connect to host"),
        ("rows.docx", "there is no such file or folder"),
        ("nobody/nothing", "not a file here, and the hub does not give it either"),
    ],
)
def test_an_address_that_leads_nowhere_is_an_error_of_ours_in_one_line(source, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        RowStore().describe(f"./{source}" if source == "rows.docx" else source)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_in_a_url_is_in_no_error_and_in_nothing_that_is_stored(prepared, in_memory):
    for source in ("s3://me:hunter22@bucket/rows.jsonl", "http://me:hunter22@127.0.0.1:9/rows.jsonl"):
        with pytest.raises(DataError) as caught:
            RowStore().describe(source)
        assert "hunter22" not in str(caught.value)
    in_memory.pipe_file("/me:hunter22@host/rows.jsonl", jsonl())
    found = prepared("memory://me:hunter22@host/rows.jsonl")
    assert len(found.conversations) == 7
    assert not any(b"hunter22" in path.read_bytes() for path in found.folder.iterdir())


class Flaky(MemoryFileSystem):
    """A filesystem whose connection breaks after the first kilobyte."""

    protocol = "flaky"
    store: ClassVar[dict[str, object]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path, mode="rb", **options):
        if mode != "rb":
            return super()._open(path, mode, **options)
        file = io.BytesIO(super()._open(path, mode, **options).getvalue())
        read = file.read

        def breaking(size: int = -1) -> bytes:
            if file.tell() >= 1024:
                raise OSError("connection reset by peer")
            return read(min(size, 1024))

        file.read = breaking
        return file


def test_a_connection_that_breaks_ends_the_reading_instead_of_passing_for_a_bad_row(prepared):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    fsspec.filesystem("flaky").pipe_file("/rows.jsonl", jsonl(ROWS * 100))
    with pytest.raises(DataError, match="connection reset by peer"):
        prepared("flaky://rows.jsonl", on_bad_row="quarantine")


def test_half_a_packed_file_is_a_bad_row_after_the_good_ones(tmp_path, prepared):
    whole = gzip.compress(jsonl(ROWS * 500), mtime=0)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    found = prepared(tmp_path / "cut.jsonl.gz", on_bad_row="quarantine")
    assert 0 < len(found.conversations) < 3500
    assert [row["reason"] for row in found.quarantined][-1] == "unreadable"
    assert "could not be read to its end" in found.quarantined[-1]["problem"]


def test_the_same_content_has_the_same_digest_wherever_it_lies(tmp_path):
    for folder in ("a", "b"):
        path = tmp_path / folder / "rows.jsonl"
        path.parent.mkdir()
        path.write_bytes(jsonl())
    first, second = (RowStore().describe(str(tmp_path / folder / "rows.jsonl")).sha256 for folder in "ab")
    assert first == second == RowStore().describe(str(tmp_path / "a")).sha256


def test_a_relative_path_is_read_from_the_current_folder(tmp_path, prepared, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(jsonl())
    assert prepared("rows.jsonl").conversations == CONVERSATIONS
