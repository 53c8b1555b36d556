"""Digests that are remembered: never stale, never needed."""

import os
import time
from pathlib import Path

import pytest

from crucible_train import files
from crucible_train.digests import DigestMemory


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "model.bin").write_bytes(b"one")
    return tmp_path / "model.bin"


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The files whose bytes were read."""
    seen: list[Path] = []
    real = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: (seen.append(path), real(path))[1])
    return seen


@pytest.fixture
def later(monkeypatch):
    """Let the clock stand a minute ahead, so that what was just written counts as settled."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60_000_000_000)


@pytest.mark.usefixtures("later")
def test_a_file_that_does_not_change_is_read_once_also_by_the_next_process(file, tmp_path, reads):
    for _ in range(3):
        assert DigestMemory(tmp_path / "memory.json").file(file) == files.sha256_bytes(b"one")
    assert len(reads) == 1


@pytest.mark.usefixtures("later")
def test_a_file_that_changes_is_read_again_even_if_size_and_time_are_put_back(file, tmp_path):
    memory = DigestMemory(tmp_path / "memory.json")
    memory.file(file)
    stat = file.stat()
    time.sleep(0.02)
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert memory.file(file) == files.sha256_bytes(b"two")


def test_a_file_that_has_just_changed_is_not_trusted_to_stay(file, tmp_path, reads):
    memory = DigestMemory(tmp_path / "memory.json")
    for _ in range(2):  # it might change again before the clock of its filesystem ticks
        assert memory.file(file) == files.sha256_bytes(b"one")
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"x": 1}'])
@pytest.mark.usefixtures("later")
def test_a_memory_that_is_lost_or_damaged_is_begun_anew(content, file, tmp_path):
    (tmp_path / "memory.json").write_bytes(content)
    memory = DigestMemory(tmp_path / "memory.json")
    assert memory.file(file) == files.sha256_bytes(b"one")
    assert memory.file(file) == files.sha256_bytes(b"one")


@pytest.mark.usefixtures("later")
def test_a_damaged_entry_is_not_believed(file, tmp_path):
    memory = DigestMemory(tmp_path / "memory.json")
    memory.file(file)
    for damaged in ([], None, "x", [1, 2, 3], [file.stat().st_size]):
        memory._known[str(file.resolve())] = damaged
        assert memory.file(file) == files.sha256_bytes(b"one")


def test_a_folder_is_its_names_and_contents(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "a.json").write_text("1")
    (made / "b.bin").write_text("2")
    memory = DigestMemory(tmp_path / "memory.json")
    both, one = memory.tree(made), memory.tree(made, ("*.json",))
    assert both != one
    assert memory.tree(made, ("*.json", "a*")) == one
    (made / "b.bin").rename(made / "c.bin")
    assert memory.tree(made) != both
    assert memory.tree(made, ("*.json",)) == one
