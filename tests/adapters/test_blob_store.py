"""The blob store on its ground: passwords stay secret, and a store out of reach is an error of ours."""

import json

import fsspec
import pytest

from crucible_train import files
from crucible_train.adapters.blob_store import FsspecBlobStore
from crucible_train.errors import ArtifactError, ConfigError, CrucibleError, RunError
from crucible_train.types import ArtifactRef

REF = ArtifactRef(uri="x/" + "0" * 64, sha256="0" * 64, kind="model", size=1)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    return tmp_path / "f"


def verbs(store, file):
    return [
        lambda: store.put(file, "model"),
        lambda: store.fetch(REF),
        lambda: store.create_manifest("a/b", {}),
        lambda: store.read_manifest("a/b"),
        lambda: store.delete_manifest("a/b"),
    ]


@pytest.mark.usefixtures("s3")
def test_no_error_holds_the_password_of_the_url(tmp_path, file):
    for root in ("s3://me:hunter22@bucket/c", "http://me:hunter22@127.0.0.1:9/c"):
        for verb in verbs(FsspecBlobStore(root, tmp_path), file):
            with pytest.raises(CrucibleError) as caught:
                verb()
            assert "hunter22" not in str(caught.value)
            assert "\n" not in str(caught.value)


def test_the_password_is_in_no_error_of_a_store_that_cannot_be_made(tmp_path):
    with pytest.raises(ConfigError) as caught:
        FsspecBlobStore("nosuch://me:hunter22@host/c", tmp_path)
    assert str(caught.value) == "cache_dir: nosuch://me:[redacted]@host/c: Protocol not known: nosuch"


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_named_as_the_configuration_names_it(tmp_path, file):
    with pytest.raises(RunError, match=r"^cache_dir: s3://nobody-made-this/c: The specified bucket does not exist"):
        FsspecBlobStore("s3://nobody-made-this/c", tmp_path).put(file, "model")


def test_a_store_out_of_reach_is_not_taken_for_a_missing_artifact(tmp_path, s3, monkeypatch):
    store = FsspecBlobStore(f"{s3}/c", tmp_path)
    store.create_manifest("a/b", {"kept": 1})
    monkeypatch.setattr(type(store._fs), "_call_s3", _refused)
    for verb in (lambda: store.fetch(REF), lambda: store.is_intact(REF), lambda: store.read_manifest("a/b")):
        with pytest.raises(RunError, match="connection refused") as caught:
            verb()
        assert not isinstance(caught.value, ArtifactError)


async def _refused(*_args, **_options):
    raise ConnectionError("connection refused")


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path, file):
    (tmp_path / "store").write_text("a file stands here")
    with pytest.raises(RunError, match=f"^cache_dir: {tmp_path}/store: "):
        FsspecBlobStore(str(tmp_path / "store"), tmp_path).put(file, "model")


def test_the_home_folder_may_be_meant_by_its_short_name(tmp_path, file, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ref = FsspecBlobStore("~/store", tmp_path).put(file, "model")
    assert ref.uri == f"file://{tmp_path}/store/cas/sha256/{ref.sha256[:2]}/{ref.sha256}"


def test_the_layout_is_the_one_that_is_documented(tmp_path, file):
    root, made = tmp_path / "store", tmp_path / "made"
    made.mkdir()
    file.rename(made / "f")
    store = FsspecBlobStore(str(root), tmp_path)
    tree = store.put(made, "model")
    store.create_manifest("train/key", {"b": 1, "a": None})
    digest = files.sha256_bytes(b"content")
    assert (root / "cas" / "sha256" / digest[:2] / digest).read_bytes() == b"content"
    listing = json.loads((root / "cas" / "sha256" / tree.sha256[:2] / f"{tree.sha256}.tree").read_bytes())
    assert listing == [{"path": "f", "sha256": digest, "size": 7}]
    assert (root / "manifests" / "train" / "key.json").read_text() == '{"a":null,"b":1}\n'


def test_a_tree_in_a_local_store_is_the_same_file_as_its_blob(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "f").write_bytes(b"content")
    store = FsspecBlobStore(str(tmp_path / "store"), tmp_path)
    found = store.fetch(store.put(tmp_path / "made", "model")) / "f"
    assert found.stat().st_nlink == 2


def test_where_files_cannot_be_linked_a_tree_is_a_copy_that_is_left_alone_once_it_is_good(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "f").write_bytes(b"content")
    store = FsspecBlobStore("memory://linkless", tmp_path)
    ref = store.put(tmp_path / "made", "model")

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    found = store.fetch(ref) / "f"
    first = found.stat().st_ino
    assert found.read_bytes() == b"content"
    assert (store.fetch(ref) / "f").stat().st_ino == first
    fsspec.filesystem("memory").store.clear()
