"""A checkpoint is used only if every bit of it is what was written; the one before it is used otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from crucible_train import checkpoints, files
from crucible_train.checkpoints import MANIFEST, CheckpointFolder, checkpoint_name, verify, write_checkpoint
from crucible_train.errors import CheckpointError

FILES = ("adapter_config.json", "adapter_model.safetensors", "loop.json", "manifest.json", "metrics.jsonl")
FILES += ("optimizer.safetensors",)


def fill(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        draw = np.random.default_rng(step)
        for name in ("adapter_model", "optimizer"):
            save_file({"weights": draw.normal(size=500).astype(np.float32)}, folder / f"{name}.safetensors")
        files.write_json(folder / "adapter_config.json", {"r": 8})
        files.write_text(folder / "loop.json", files.canonical_json({"step": step}))
        files.write_text(folder / "metrics.jsonl", "".join(f'{{"step": {i}}}\n' for i in range(step)))

    return write


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    """Three checkpoints, after steps 3, 6 and 9."""
    made = CheckpointFolder(tmp_path)
    for step in (3, 6, 9):
        write_checkpoint(made.path / checkpoint_name(step), fill(step))
    made.prune(9, frozenset())
    return made


def newest(folder: CheckpointFolder) -> tuple[int | None, list[str]]:
    reports: list[str] = []
    found = folder.newest_good(reports.append)
    return (found.step if found else None), reports


def flip(place: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(len(data) * place), len(data) - 1)] ^= 1
        path.write_bytes(data)

    return damage


def zero_tail(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-64] + bytes(min(64, len(data))))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit flipped at its head": flip(0.0),
    "a bit flipped in its middle": flip(0.5),
    "a bit flipped at its tail": flip(1.0),
    "its last byte cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half of it cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "a tail of zeros": zero_tail,
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "all zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
    "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
    "a dead link in its place": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "that of the checkpoint before": lambda path: shutil.copy(
        path.parents[1] / "step-00000006" / path.name, path
    ),
}  # fmt: skip
SAME_IN_ALL = {("that of the checkpoint before", "adapter_config.json")}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_reported_and_the_checkpoint_before_used(
    name: str, damage: str, folder: CheckpointFolder
) -> None:
    path = folder.path / "step-00000009" / name
    DAMAGES[damage](path)
    step, reports = newest(folder)
    if (damage, name) in SAME_IN_ALL:
        assert (step, reports) == (9, [])
        return
    assert step == 6
    assert len(reports) == 1
    assert reports[0].startswith(f"checkpoint passed over: {path.parent}: ")
    assert name in reports[0]


def test_safetensors_alone_would_have_loaded_them(folder: CheckpointFolder) -> None:
    """The reason for the manifest."""
    path = folder.path / "step-00000009" / "optimizer.safetensors"
    flip(0.5)(path)
    zero_tail(path)
    assert load_file(path)["weights"].shape == (500,)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_change_of_any_bytes_is_noticed(data: st.DataObject, folder: CheckpointFolder) -> None:
    name = data.draw(st.sampled_from(FILES))
    path = folder.path / "step-00000009" / name
    before = path.read_bytes()
    start = data.draw(st.integers(0, len(before)))
    end = data.draw(st.integers(start, min(len(before), start + 40)))
    after = before[:start] + data.draw(st.binary(max_size=40)) + before[end:]
    path.write_bytes(after)
    try:
        assert newest(folder)[0] == (9 if after == before else 6)
    finally:
        path.write_bytes(before)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["files", "format", "name", "sha256", "a"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_a_manifest_of_anything_is_damaged(text: bytes, folder: CheckpointFolder) -> None:
    (folder.path / "step-00000009" / MANIFEST).write_bytes(text)
    assert newest(folder)[0] == 6


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 10_000, '"\\ud800"', "NaN"])
def test_a_manifest_that_breaks_parsers_is_damaged(text: str, folder: CheckpointFolder) -> None:
    (folder.path / "step-00000009" / MANIFEST).write_text(text)
    assert newest(folder)[0] == 6


@pytest.mark.parametrize("change", [{"format": 2}, {"name": "step-00000006"}])
def test_a_sealed_manifest_of_another_version_or_checkpoint_is_refused(
    change: dict[str, object], folder: CheckpointFolder
) -> None:
    path = folder.path / "step-00000009" / MANIFEST
    body = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"} | change
    path.write_text(files.canonical_json(body | {"sha256": files.sha256_json(body)}) + "\n")
    assert newest(folder)[0] == 6


def test_a_renamed_checkpoint_is_not_taken_for_a_later_one(folder: CheckpointFolder) -> None:
    (folder.path / "step-00000009").rename(folder.path / "step-00000012")
    step, reports = newest(folder)
    assert step == 6
    assert len(reports) == 2, "the renamed one, and the one that is gone"


def test_a_file_that_the_disk_cannot_read_is_reported(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256_file = files.sha256_file

    def failing(path: Path) -> str:
        if path == folder.path / "step-00000009" / "loop.json":
            raise OSError(5, "Input/output error")
        return sha256_file(path)

    monkeypatch.setattr(files, "sha256_file", failing)
    step, reports = newest(folder)
    assert step == 6
    assert reports[0].endswith("loop.json cannot be read: Input/output error")


def test_where_none_is_sound_it_is_an_error_that_names_the_folder_and_the_way_out(folder: CheckpointFolder) -> None:
    for step in folder.steps():
        (folder.path / checkpoint_name(step) / "loop.json").unlink()
    reports: list[str] = []
    with pytest.raises(CheckpointError) as raised:
        folder.newest_good(reports.append)
    assert str(raised.value) == (
        f"{folder.path}: none of its 3 checkpoints is sound; checkpoint.resume_from_checkpoint=never starts anew"
    )
    assert len(reports) == 3
    assert folder.steps() == [3, 6, 9]


@pytest.mark.parametrize("lost", [[9], [6, 9], [3]])
def test_a_lost_checkpoint_is_reported(lost: list[int], folder: CheckpointFolder) -> None:
    for step in lost:
        shutil.rmtree(folder.path / checkpoint_name(step))
    step, reports = newest(folder)
    assert step == max({3, 6, 9} - {*lost})
    assert reports == [f"checkpoint passed over: {folder.path / checkpoint_name(gone)}: it is gone" for gone in lost]


def test_where_all_are_lost_it_is_an_error(folder: CheckpointFolder) -> None:
    shutil.rmtree(folder.path)
    with pytest.raises(CheckpointError, match="none of its 3 checkpoints is sound"):
        newest(folder)


def test_where_there_never_was_one_there_is_none(tmp_path: Path) -> None:
    assert newest(CheckpointFolder(tmp_path / "absent")) == (None, [])
    (tmp_path / "checkpoints").mkdir()
    assert newest(CheckpointFolder(tmp_path)) == (None, [])


@pytest.mark.parametrize("text", [None, "", "not JSON\n", '[]\n{}\n{"step": "3"}\n', "\x00" * 100])
def test_the_index_is_not_needed_and_is_made_again(text: str | None, folder: CheckpointFolder) -> None:
    expected = folder.index_path.read_text()
    folder.index_path.unlink()
    if text is not None:
        folder.index_path.write_text(text)
    assert newest(folder) == (9, [])
    folder.prune(9, frozenset())
    assert folder.index_path.read_text() == expected


def test_the_index_lists_name_step_path_and_digest(folder: CheckpointFolder) -> None:
    entries = [json.loads(line) for line in folder.index_path.read_text().splitlines()]
    assert entries[0] == {
        "name": "step-00000003",
        "step": 3,
        "path": "checkpoints/step-00000003",
        "sha256": verify(folder.path / "step-00000003"),
    }


@pytest.mark.parametrize(
    ("keep", "protect", "kept"),
    [(1, set(), [9]), (2, set(), [6, 9]), (9, set(), [3, 6, 9]), (1, {3}, [3, 9]), (1, {9}, [9]), (1, {4}, [9])],
)
def test_pruning_keeps_the_newest_and_the_protected(
    keep: int, protect: set[int], kept: list[int], folder: CheckpointFolder
) -> None:
    folder.prune(keep, frozenset(protect))
    assert folder.steps() == kept
    assert newest(folder) == (9, [])
    assert [json.loads(line)["step"] for line in folder.index_path.read_text().splitlines()] == kept


def test_one_that_is_half_deleted_is_none(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        (path / "loop.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.discard_after(6)
    assert folder.steps() == [3, 6]
    assert newest(folder) == (6, [])


@pytest.mark.parametrize(("step", "kept"), [(9, [3, 6, 9]), (6, [3, 6]), (5, [3]), (-1, [])])
def test_going_back_deletes_what_came_after(step: int, kept: list[int], folder: CheckpointFolder) -> None:
    folder.discard_after(step)
    assert folder.steps() == kept
    assert newest(folder) == (kept[-1] if kept else None, [])


@pytest.mark.parametrize(
    "name", ["step-9", "step-000000012", "step-00000012x", ".tmp-1-step-00000012", "step-٠٠٠٠٠٠١٢"]
)
def test_other_names_are_no_checkpoints(name: str, folder: CheckpointFolder) -> None:
    shutil.copytree(folder.path / "step-00000009", folder.path / name)
    assert newest(folder) == (9, [])


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere"), Path.mkdir])
def test_what_only_has_the_name_of_a_checkpoint_is_passed_over_and_deleted(
    make: Callable[[Path], None], folder: CheckpointFolder
) -> None:
    make(folder.path / "step-00000012")
    assert newest(folder)[0] == 9
    folder.discard_after(9)
    assert sorted(path.name for path in folder.path.iterdir()) == [checkpoint_name(step) for step in (3, 6, 9)]


def test_a_checkpoint_that_cannot_be_filled_leaves_nothing(folder: CheckpointFolder) -> None:
    def failing(temporary: Path) -> None:
        fill(12)(temporary)
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"step-00000012: it could not be written: .*No space left on device"):
        write_checkpoint(folder.path / "step-00000012", failing)
    with pytest.raises(CheckpointError):
        write_checkpoint(folder.path / "step-00000009", failing)
    assert sorted(path.name for path in folder.path.iterdir()) == [checkpoint_name(step) for step in (3, 6, 9)]
    assert newest(folder) == (9, [])


def test_a_damaged_checkpoint_is_replaced(folder: CheckpointFolder) -> None:
    expected = verify(folder.path / "step-00000009")
    flip(0.5)(folder.path / "step-00000009" / "loop.json")
    assert write_checkpoint(folder.path / "step-00000009", fill(9)) == expected
    assert newest(folder) == (9, [])


def test_equal_contents_have_equal_digests(folder: CheckpointFolder, tmp_path: Path) -> None:
    again = write_checkpoint(tmp_path / "again" / "step-00000009", fill(9))
    assert again == verify(folder.path / "step-00000009")
    assert again != write_checkpoint(tmp_path / "other" / "step-00000009", fill(8))


def test_everything_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut loses what was not synced, so no rename may come before the syncs of what it names."""
    events: list[tuple[str, str]] = []
    for name in ("sync_file", "sync_folder"):
        original = getattr(files, name)
        monkeypatch.setattr(files, name, lambda path, n=name, o=original: (events.append((n, path.name)), o(path)))
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (events.append(("rename", Path(to).name)), rename(self, to))[1]
    )
    write_checkpoint(tmp_path / "checkpoints" / "step-00000001", fill(1))
    renamed = events.index(("rename", "step-00000001"))
    for name in FILES:
        assert ("sync_file", name) in events[:renamed]
    assert events[renamed - 1][0] == "sync_folder"
    assert events[renamed + 1] == ("sync_folder", "checkpoints")


def test_a_checkpoint_is_read_where_checkpoints_are_written() -> None:
    assert checkpoints.checkpoint_name(7) == "step-00000007"
    assert checkpoints.checkpoint_name(123_456_789) == "step-123456789"
