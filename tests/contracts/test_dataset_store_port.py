"""What every dataset store keeps: rows in a fixed order, each once, readable or not, with the place it came from."""

import json

import fsspec
import pytest

from crucible_train import wiring
from crucible_train.errors import DataError
from crucible_train.ports import SourceRow

LINES = ['{"n": 1}', "", '{"n": ', '{"n": 2}', '["n"]', '{"n": 3}']


@pytest.fixture
def store():
    return wiring.dataset_store()


@pytest.fixture(params=["file", "folder", "memory", "s3"])
def source(request, tmp_path):
    """The lines in one file, or cut into two."""
    parts = [LINES] if request.param in {"file", "memory"} else [LINES[:3], LINES[3:]]
    if request.param in {"file", "folder"}:
        root = str(tmp_path / "set")
    else:
        root = f"{request.getfixturevalue('s3')}/set" if request.param == "s3" else "memory://set"
    filesystem, place = fsspec.core.url_to_fs(root)
    filesystem.makedirs(place, exist_ok=True)
    for number, part in enumerate(parts):
        filesystem.pipe_file(f"{place}/{number}.jsonl", "\n".join(part).encode())
    yield f"{root}/0.jsonl" if len(parts) == 1 else root
    fsspec.filesystem("memory").store.clear()


def test_every_row_comes_out_once_in_order_readable_or_not(store, source):
    rows = list(store.rows(source))
    assert [row.values["n"] if row.values else None for row in rows] == [1, None, 2, None, 3]
    assert all((row.problem is None) == (row.values is not None) for row in rows)
    assert len({row.where for row in rows}) == 5


def test_reading_twice_gives_the_same_rows(store, source):
    assert list(store.rows(source)) == list(store.rows(source))


def test_a_place_is_file_and_line(store, source):
    for row in store.rows(source):
        file, line, *_ = row.where.removeprefix("memory:").removeprefix("s3:").split(":")
        number = int(file.rpartition("/")[2].removesuffix(".jsonl"))
        text = LINES[int(line) - 1 + 3 * number]
        assert row.values is None or json.loads(text) == row.values


def test_a_description_names_the_files_and_changes_with_their_content_only(store, source):
    info = store.describe(source)
    assert store.describe(source) == info
    assert all(file.startswith(source) for file in info.files)
    filesystem, place = fsspec.core.url_to_fs(source)
    first = place if place.endswith(".jsonl") else f"{place}/0.jsonl"
    filesystem.pipe_file(first, filesystem.cat_file(first) + b"\n")
    changed = store.describe(source)
    assert changed.sha256 != info.sha256
    assert changed.num_bytes == info.num_bytes + 1


def test_nothing_there_is_a_data_error_when_described_and_when_read(store, source):
    for ask in (store.describe, lambda where: next(store.rows(where))):
        with pytest.raises(DataError, match="there is no such file or folder"):
            ask(f"{source}/nothing.jsonl")


def test_a_row_holds_either_values_or_a_problem():
    assert SourceRow("f:1", {"a": 1}).problem is None
