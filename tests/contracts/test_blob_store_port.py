"""What every blob store keeps: whole, by digest, verified when read; manifests created once."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from crucible_train import files, wiring
from crucible_train.adapters.blob_store import FsspecBlobStore
from crucible_train.errors import ArtifactError
from crucible_train.ports import BlobStore
from crucible_train.types import ArtifactRef

TREE = {"a.bin": b"\x00\xff" * 500, "sub/b.txt": b"b", "sub/c": b"", "same": b"b"}


@pytest.fixture(params=["folder", "memory", "s3"])
def root(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "s3":
        return request.getfixturevalue("s3") + "/store"
    fsspec.filesystem("memory").store.clear()
    return "memory://store"


@pytest.fixture
def store(root, tmp_path) -> BlobStore:
    return wiring.conforming(FsspecBlobStore(root, tmp_path / "local"), BlobStore, "blob store")


@pytest.fixture
def elsewhere(root, tmp_path) -> BlobStore:
    """The same store as another machine sees it."""
    return FsspecBlobStore(root, tmp_path / "other machine")


@pytest.fixture
def tree(tmp_path) -> Path:
    for name, data in TREE.items():
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "made"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(root: str) -> tuple[object, list[str]]:
    """The filesystem under a store and every file in it."""
    filesystem, path = fsspec.core.url_to_fs(root, use_listings_cache=False)
    filesystem.invalidate_cache()
    return filesystem, sorted(name for name in filesystem.find(path) if "/trees/" not in name)


def test_a_file_is_named_by_its_digest_and_comes_back(store, elsewhere, tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    ref = store.put(tmp_path / "f", "model")
    assert ref.sha256 == files.sha256_bytes(b"content")
    assert (ref.kind, ref.size) == ("model", 7)
    assert store.fetch(ref).read_bytes() == elsewhere.fetch(ref).read_bytes() == b"content"
    assert ArtifactRef.model_validate_json(ref.model_dump_json()) == ref


def test_a_folder_comes_back_whole_and_nothing_else_is_in_it(store, elsewhere, tree):
    ref = store.put(tree, "rendered")
    assert ref.size == sum(map(len, TREE.values()))
    for found in (store, elsewhere):
        folder = found.fetch(ref)
        (folder / "left over").write_bytes(b"x")
        assert contents(found.fetch(ref)) == TREE


def test_an_empty_folder_comes_back_empty(store, tmp_path):
    (tmp_path / "nothing").mkdir()
    folder = store.fetch(store.put(tmp_path / "nothing", "rendered"))
    assert folder.is_dir()
    assert contents(folder) == {}


def test_equal_content_has_one_reference_and_is_stored_once(store, root, tree, tmp_path):
    first = store.put(tree, "rendered")
    before = stored(root)[1]
    assert store.put(tree, "rendered") == first
    (tree / "a.bin").rename(tree / "renamed")
    assert store.put(tree, "rendered").sha256 != first.sha256
    assert len(stored(root)[1]) == len(before) + 1  # the other list of names; the bytes are there already


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_blob_is_never_handed_out_and_is_mended_by_putting_it_again(store, root, tree, tmp_path, damage):
    ref = store.put(tree, "rendered")
    filesystem, names = stored(root)
    for name in names:
        good = filesystem.cat_file(name)
        bad = {"flip": b"X" + good[1:], "truncate": good[:-1], "empty": b""}.get(damage)
        if bad == good:
            continue
        filesystem.rm_file(name) if bad is None else filesystem.pipe_file(name, bad)
        elsewhere = FsspecBlobStore(root, tmp_path / name.replace("/", "-"))  # a machine without copies
        with pytest.raises(ArtifactError, match="missing" if damage == "delete" else "damaged"):
            elsewhere.fetch(ref)
        assert not elsewhere.is_intact(ref)
        assert store.put(tree, "rendered") == ref
        assert contents(elsewhere.fetch(ref)) == TREE


def test_a_damaged_local_copy_is_noticed(store, tree):
    ref = store.put(tree, "rendered")
    (store.fetch(ref) / "a.bin").write_bytes(b"somebody wrote here")
    assert not store.is_intact(ref) or contents(store.fetch(ref)) == TREE
    assert store.put(tree, "rendered") == ref
    assert contents(store.fetch(ref)) == TREE


@pytest.mark.parametrize("path", ["../out", "/etc/out", "a/../../out"])
def test_a_list_that_leads_outside_is_refused(store, root, path):
    blob = files.sha256_bytes(b"b")
    listing = files.canonical_json([{"path": path, "sha256": blob, "size": 1}]).encode()
    digest = files.sha256_bytes(listing)
    filesystem, place = fsspec.core.url_to_fs(root)
    for name, data in ((blob, b"b"), (f"{digest}.tree", listing)):
        filesystem.makedirs(f"{place}/cas/sha256/{name[:2]}", exist_ok=True)
        filesystem.pipe_file(f"{place}/cas/sha256/{name[:2]}/{name}", data)
    with pytest.raises(ArtifactError, match="lies outside"):
        store.fetch(ArtifactRef(uri=f"x/{digest}.tree", sha256=digest, kind="rendered", size=1))


def test_a_reference_whose_address_is_of_another_digest_is_refused(store, tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    ref = store.put(tmp_path / "f", "model")
    with pytest.raises(ArtifactError, match="does not name the digest"):
        store.fetch(ref.model_copy(update={"sha256": "0" * 64}))


def test_what_was_never_stored_is_missing(store):
    ref = ArtifactRef(uri="x/" + "0" * 64, sha256="0" * 64, kind="model", size=1)
    assert not store.is_intact(ref)
    with pytest.raises(ArtifactError, match="missing"):
        store.fetch(ref)


def test_a_manifest_is_created_once_and_every_reader_sees_the_first(store, elsewhere):
    assert store.read_manifest("train/key") is None
    assert store.create_manifest("train/key", {"a": None, "b": True, "é": [1.5]})
    assert not elsewhere.create_manifest("train/key", {"other": 1})
    assert (
        store.read_manifest("train/key") == elsewhere.read_manifest("train/key") == {"a": None, "b": True, "é": [1.5]}
    )


def test_a_manifest_can_be_deleted_twice_and_made_anew(store, elsewhere):
    store.create_manifest("train/key", {"a": 1})
    store.delete_manifest("train/key")
    elsewhere.delete_manifest("train/key")
    assert elsewhere.read_manifest("train/key") is None
    assert elsewhere.create_manifest("train/key", {"a": 2})
    assert store.read_manifest("train/key") == {"a": 2}


@pytest.mark.parametrize("bad", [b"", b'{"artifact": {"ur', b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_cannot_be_read_is_an_error_and_none_once_deleted(store, root, bad):
    store.create_manifest("train/key", {"a": 1})
    filesystem, (name,) = stored(root)
    filesystem.pipe_file(name, bad)
    with pytest.raises(ArtifactError, match="train/key"):
        store.read_manifest("train/key")
    store.delete_manifest("train/key")
    assert store.read_manifest("train/key") is None


def test_of_many_writers_of_a_manifest_one_wins(store, root, tmp_path):
    stores = [FsspecBlobStore(root, tmp_path / str(n)) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for key in range(4):
            won = list(pool.map(lambda n, key=key: stores[n].create_manifest(f"k/{key}", {"by": n}), range(8)))
            assert won.count(True) == 1
            assert store.read_manifest(f"k/{key}") == {"by": won.index(True)}


def test_many_who_put_and_fetch_the_same_folder_at_once_all_get_it(store, root, tree, tmp_path):
    if root.startswith("memory:"):
        pytest.skip("fsspec's memory filesystem is not made for threads: readers share one position in a file")

    def work(number: int) -> dict[str, bytes]:
        own = FsspecBlobStore(root, tmp_path / "shared local")
        return contents(own.fetch(own.put(tree, "rendered")))

    with ThreadPoolExecutor(6) as pool:
        assert all(found == TREE for found in pool.map(work, range(12)))
    assert not [name for name in stored(root)[1] if files.TEMPORARY_MARK in name]


def put_and_fetch(root: str, local: Path, tree: Path) -> bool:
    own = FsspecBlobStore(root, local)
    return contents(own.fetch(own.put(tree, "rendered"))) == TREE


def test_processes_share_a_folder(tree, tmp_path):
    root = str(tmp_path / "store")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        jobs = [pool.submit(put_and_fetch, root, tmp_path, tree) for _ in range(6)]
        assert all(job.result() for job in jobs)


def test_what_a_killed_writer_left_half_written_is_never_read(store, root, tree):
    filesystem, place = fsspec.core.url_to_fs(root)
    digest = files.sha256_bytes(TREE["a.bin"])
    folder = f"{place}/cas/sha256/{digest[:2]}"
    filesystem.makedirs(folder, exist_ok=True)
    filesystem.pipe_file(f"{folder}/{files.TEMPORARY_MARK}0-{digest}", TREE["a.bin"][:3])
    filesystem.pipe_file(f"{folder}/{digest}", TREE["a.bin"][:3])  # as a store without atomic writes would leave it
    assert contents(store.fetch(store.put(tree, "rendered"))) == TREE
