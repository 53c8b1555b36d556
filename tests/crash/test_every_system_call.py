"""What a kill or an error at any system call leaves behind, injected by strace into the code that writes files."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from crucible_train import checkpoints, files

pytestmark = pytest.mark.usefixtures("can_trace")

CHANGING = (
    "mkdir",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "write",
    "fsync",
)
MAX_CALLS = 100
FAILURES = [(["fsync"], "EIO"), (["write"], "ENOSPC"), (["rename", "renameat"], "EROFS")]


def struck(
    zygote: Any, fault: str, reset: Callable[[], object], calls: Iterable[str] = CHANGING, **task: Any
) -> Iterator[Any]:
    """The task with the fault at its first mkdir, its second, ..., its first rename, ...: how each ended."""
    for call in calls:
        for when in range(1, MAX_CALLS):
            reset()
            ended = zygote.run_injected(f"?{call}:{fault}:when={when}", **task)
            if not ended.was_killed and "error" not in ended.answer:
                break
            yield ended
        assert when < MAX_CALLS - 1


def folder_reset(folder: Path) -> Callable[[], object]:
    """Puts a folder back to what it is now."""
    copy = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-before")))

    def reset() -> None:
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)

    return reset


def saved_step(run_dir: Path, reports: list[str]) -> int:
    """The step of the newest sound checkpoint, whose weights are what was saved."""
    found = checkpoints.CheckpointFolder(run_dir).newest_good(reports.append)
    assert found is not None
    weights = load_file(found.folder / "adapter_model.safetensors")["weights"]
    assert (weights == found.step).all()
    return found.step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.fixture
def run_dir(zygote: Any, tmp_path: Path) -> Path:
    """A run with one checkpoint, after step 0."""
    assert zygote.run(do="save", run_dir=tmp_path / "run", step=0).exit_code == 0
    return tmp_path / "run"


def test_a_save_killed_at_any_call_leaves_the_old_checkpoint_or_the_new_one(zygote: Any, run_dir: Path) -> None:
    found = []
    for ended in struck(zygote, "signal=KILL", folder_reset(run_dir), do="save", run_dir=run_dir, step=1):
        assert ended.was_killed
        reports: list[str] = []
        found.append(saved_step(run_dir, reports))
        assert reports == []
    assert found.count(0) > 15
    assert found.count(1) > 5
    assert saved_step(run_dir, []) == 1


@pytest.mark.parametrize(("calls", "error"), FAILURES)
def test_a_save_whose_call_fails_says_so_and_leaves_a_sound_checkpoint(
    calls: list[str], error: str, zygote: Any, run_dir: Path
) -> None:
    num_failures = 0
    for ended in struck(zygote, f"error={error}", folder_reset(run_dir), calls, do="save", run_dir=run_dir, step=1):
        num_failures += 1
        assert ended.answer["kinds"][0] in ("CheckpointError", "OSError")
        reports: list[str] = []
        assert saved_step(run_dir, reports) in (0, 1)
        assert reports == []
        assert not list((run_dir / "checkpoints").glob(".tmp-*-step-00000001"))
    assert num_failures >= 3


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_killed_at_any_call_has_its_old_bytes_or_its_new_ones(
    old: bytes | None, zygote: Any, folder: Path
) -> None:
    path, new, found = folder / "file", b"new" * 30_000, []
    if old is not None:
        path.write_bytes(old)
    for ended in struck(zygote, "signal=KILL", folder_reset(folder), do="write", path=path, text="new"):
        assert ended.was_killed
        found.append(path.read_bytes() if path.exists() else None)
        files.remove_temporaries(folder)
        assert {*folder.iterdir()} <= {path}
    assert {*found} == {old, new}
    assert len(found) > 4
    assert path.read_bytes() == new


@pytest.mark.parametrize(("calls", "error"), FAILURES)
def test_a_file_whose_call_fails_is_whole_and_leaves_nothing_beside_it(
    calls: list[str], error: str, zygote: Any, folder: Path
) -> None:
    path, num_failures = folder / "file", 0
    path.write_bytes(b"old")
    for ended in struck(zygote, f"error={error}", folder_reset(folder), calls, do="write", path=path, text="new"):
        num_failures += 1
        assert "OSError" in ended.answer["kinds"]
        assert path.read_bytes() in (b"old", b"new" * 30_000)
        assert [*folder.iterdir()] == [path]
    assert num_failures >= 1


def test_a_new_file_killed_at_any_call_is_whole_or_absent(zygote: Any, folder: Path) -> None:
    path, found = folder / "file", []
    for ended in struck(zygote, "signal=KILL", folder_reset(folder), do="create", path=path, text="new"):
        assert ended.was_killed
        found.append(path.read_bytes() if path.exists() else None)
    assert {*found} == {None, b"new" * 10_000}
    assert len(found) > 4
    assert path.read_bytes() == b"new" * 10_000
