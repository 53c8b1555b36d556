"""Files appear whole or not at all, and equal values have equal texts."""

import hashlib
import json
import math
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train import files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_a_file_has_its_name_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    with files.atomic_open(path) as file:
        file.write(b"part")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"part"
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), files.atomic_open(path) as file:  # noqa: PT012
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("write", [files.write_bytes, files.create_bytes])
def test_bytes_are_on_the_disk_before_they_get_their_name_and_the_name_is_too_before_the_return(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "file", []
    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(("folder" if is_folder else os.fstat(descriptor).st_size, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", watched_fsync)
    write(path, b"twelve bytes")
    assert events == [(12, False), ("folder", True)]


def test_a_reader_sees_old_bytes_or_new_ones_and_nothing_between(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"0" * 100_000)
    writer = multiprocessing.get_context("spawn").Process(target=_write_many, args=(path,))
    writer.start()
    seen = set()
    while writer.is_alive():
        data = path.read_bytes()
        assert len(data) == 100_000
        assert len({*data}) == 1
        seen.add(data[0])
    writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 2


def _write_many(path: Path) -> None:
    for index in range(300):
        files.write_bytes(path, bytes([index % 200]) * 100_000)


def test_of_several_writers_of_a_new_file_one_wins_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(4), context.Queue()
    writers = [context.Process(target=_create_many, args=(tmp_path, number, barrier, queue)) for number in range(4)]
    for writer in writers:
        writer.start()
    won = [queue.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join()
    for index in range(_NUM_RACES):
        winners = [number for number, indexes in won if index in indexes]
        assert len(winners) == 1
        assert (tmp_path / str(index)).read_bytes() == bytes([winners[0]]) * 10_000
    assert len([*tmp_path.iterdir()]) == _NUM_RACES


_NUM_RACES = 100


def _create_many(folder: Path, number: int, barrier: Any, queue: Any) -> None:
    won = set()
    for index in range(_NUM_RACES):
        barrier.wait(60)
        if files.create_bytes(folder / str(index), bytes([number]) * 10_000):
            won.add(index)
    queue.put((number, won))


def test_creating_what_exists_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    assert files.create_bytes(path, b"first")
    assert not files.create_bytes(path, b"second")
    assert path.read_bytes() == b"first"
    assert [*path.parent.iterdir()] == [path]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with files.atomic_folder(target) as temporary:
        files.write_text(temporary / "inner" / "file", "text")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "text"
    with pytest.raises(RuntimeError), files.atomic_folder(tmp_path / "other") as temporary:  # noqa: PT012
        files.write_text(temporary / "file", "text")
        raise RuntimeError
    with pytest.raises(OSError, match="not empty"), files.atomic_folder(target) as temporary:
        files.write_text(temporary / "file", "other")
    assert [*tmp_path.iterdir()] == [target]
    assert (target / "inner" / "file").read_text() == "text"


def test_leftovers_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    folder = tmp_path / "folder"
    (folder / ".tmp-1-step").mkdir(parents=True)
    (folder / ".tmp-1-step" / "file").touch()
    (folder / ".tmp-2-file").touch()
    (folder / ".tmp-3-link").symlink_to(outside)
    (folder / "kept").touch()
    files.remove_temporaries(folder)
    files.remove_temporaries(tmp_path / "absent")
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert [path.name for path in outside.iterdir()] == ["file"]


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for line in ("one", "zwei ü", ""):
        files.append_line(path, line)
    assert path.read_bytes() == "one\nzwei ü\n\n".encode()


def test_a_line_that_cannot_be_appended_whole_is_not_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "log", os.write
    files.append_line(path, "before")
    calls: list[int] = []

    def part_then_full(descriptor: int, data: Any) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(descriptor, bytes(data)[:3])

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", part_then_full)
        with pytest.raises(OSError, match="No space"):
            files.append_line(path, "after")
    assert calls == [6, 3]
    assert path.read_bytes() == b"before\n"


def test_a_line_written_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:2]))
    files.append_line(tmp_path / "log", "a longer line")
    assert (tmp_path / "log").read_bytes() == b"a longer line\n"


@settings(max_examples=50)
@given(JSON)
def test_canonical_json_reads_back_and_is_stable(value: Any) -> None:
    text = files.canonical_json(value)
    assert json.loads(text) == value
    assert files.canonical_json(json.loads(text)) == text


@settings(max_examples=50)
@given(st.dictionaries(st.text(), JSON), st.randoms())
def test_canonical_json_does_not_see_the_order_of_keys(value: dict[str, Any], random: Any) -> None:
    items = [*value.items()]
    random.shuffle(items)
    assert files.canonical_json(dict(items)) == files.canonical_json(value)


def test_canonical_json_is_the_same_in_every_process() -> None:
    value = {"b": [1, 2.5, None, True, "ü\n\u2028"], "a": {"z": 1e-9, "y": 1e300}, "10": 0, "9": -0.0}
    expected = '{"10":0,"9":-0.0,"a":{"y":1e+300,"z":1e-09},"b":[1,2.5,null,true,"ü\\n\u2028"]}'
    assert files.canonical_json(value) == expected
    code = f"from crucible_train import files; print(files.sha256_json({value!r}))"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        root = Path(files.__file__).parents[1]
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, check=True)
        assert done.stdout.decode().strip() == hashlib.sha256(expected.encode()).hexdigest()


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_what_json_has_no_form_for_is_refused(value: Any, tmp_path: Path) -> None:
    for write in (files.canonical_json, lambda value: files.write_json(tmp_path / "file", value)):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(value)
    assert [*tmp_path.iterdir()] == []


def test_nulls_and_booleans_are_written(tmp_path: Path) -> None:
    files.write_json(tmp_path / "file", {"a": None, "b": False, "c": []})
    assert files.read_json(tmp_path / "file") == {"a": None, "b": False, "c": []}


@given(st.binary(max_size=100))
def test_any_bytes_are_json_or_nothing(data: bytes) -> None:
    path = Path(os.environ["HOME"]) / "any-bytes"
    path.write_bytes(data)
    value = files.read_json(path)
    try:
        assert value == files.parse_json(data.decode()) or value != value
    except ValueError:
        assert value is None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 10_000, "", "\x00", '{"a": 1'])
def test_what_cannot_be_read_as_json_is_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    assert files.read_json(tmp_path / "file") is None
    with pytest.raises(ValueError, match=r".+"):
        files.parse_json(text)


def test_where_there_is_no_file_there_is_no_json(tmp_path: Path) -> None:
    assert files.read_json(tmp_path / "absent") is None
    assert files.read_json(tmp_path) is None


@given(st.binary(max_size=3000))
def test_digests_are_those_of_sha256sum(data: bytes) -> None:
    path = Path(os.environ["HOME"]) / "digested"
    path.write_bytes(data)
    assert files.sha256_file(path) == files.sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_copying_keeps_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(3_000_000))
    files.copy_file(tmp_path / "source", tmp_path / "folder" / "copy")
    assert (tmp_path / "folder" / "copy").read_bytes() == (tmp_path / "source").read_bytes()
    with pytest.raises(FileNotFoundError):
        files.copy_file(tmp_path / "absent", tmp_path / "folder" / "copy")
    assert (tmp_path / "folder" / "copy").stat().st_size == 3_000_000


def test_files_can_be_read_by_whom_the_user_lets(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        files.write_text(tmp_path / "written", "")
        files.append_line(tmp_path / "appended", "")
        assert files.create_bytes(tmp_path / "created", b"")
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


def test_a_folder_is_held_by_any_number_until_the_last_lets_go(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from crucible_train import files\n"
    program += "with files.held(Path(sys.argv[1])): print('held', flush=True); input()"
    assert not files.is_held(tmp_path)
    words = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with files.held(tmp_path):
            assert files.is_held(tmp_path)
        assert files.is_held(tmp_path)
        other.kill()
        other.wait()
    assert not files.is_held(tmp_path)
    assert not files.is_held(tmp_path / "nowhere")


def test_a_file_can_be_kept_from_making_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.atomic_open(tmp_path / "new" / "file", makes_folder=False):
        pass
    assert not [*tmp_path.iterdir()]
