"""The blob port over any fsspec filesystem: a local folder, S3, memory.

    cas/sha256/ab/<digest>          a file
    cas/sha256/ab/<digest>.tree     a folder: canonical JSON of path, size and SHA-256 of each of its files
    manifests/<name>.json           written last, created only if absent

Reading goes through a local folder (the store itself where it is one): files are hashed before they are handed out.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from crucible_train import files
from crucible_train.adapters.reasons import in_one_line
from crucible_train.config.redaction import hide_secrets
from crucible_train.errors import ArtifactError, ConfigError, CrucibleError, RunError
from crucible_train.types import ArtifactRef

_TREE = ".tree"


class FsspecBlobStore:
    """Content-addressed files under one root.

    Args:
        root: a local folder or any fsspec URL.
        local: where copies of remote files are kept; unused where the root is local.
    """

    def __init__(self, root: str, local: Path) -> None:
        """Open the store.

        Raises:
            ConfigError: the URL's protocol is unknown or its library is missing.
        """
        self._url, self._shown = root, hide_secrets(root)
        try:
            where = root if "://" in root else str(Path(root).expanduser())
            self._fs, path = fsspec.core.url_to_fs(where, use_listings_cache=False)
        except (ImportError, ValueError, RuntimeError) as error:
            raise ConfigError(f"cache_dir: {self._shown}: {in_one_line(error, root)}") from error
        self._root = path.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._local = Path(self._root) if self._is_local else local / files.sha256_bytes(root.encode())[:16]

    def put(self, path: Path, kind: str) -> ArtifactRef:
        """Store a file, or a folder as a tree of files.

        Raises:
            RunError: the store cannot be reached or written.
        """
        with self._reached():
            if path.is_file():
                digest = files.sha256_file(path)
                self._put_file(path, digest)
                return self._ref(digest, kind, path.stat().st_size)
            entries, size = [], 0
            for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
                digest, num_bytes = files.sha256_file(file), file.stat().st_size
                self._put_file(file, digest)
                entries.append({"path": file.relative_to(path).as_posix(), "sha256": digest, "size": num_bytes})
                size += num_bytes
            listing = files.canonical_json(entries).encode()
            digest = files.sha256_bytes(listing)
            self._put_bytes(listing, digest + _TREE)
            return self._ref(digest + _TREE, kind, size)

    def fetch(self, ref: ArtifactRef) -> Path:
        """A local, verified copy of the file or folder, not to be written to.

        Raises:
            ArtifactError: it is missing, or its content is not what the digest says.
            RunError: the store cannot be reached.
        """
        name = PurePosixPath(ref.uri).name
        if name.removesuffix(_TREE) != ref.sha256:
            raise ArtifactError(f"{hide_secrets(ref.uri)}: the reference does not name the digest {ref.sha256}")
        with self._reached():
            blob = self._fetch_blob(name)
            return self._fetch_tree(blob, ref) if name.endswith(_TREE) else blob

    def is_intact(self, ref: ArtifactRef) -> bool:
        """Whether everything the reference names is there and hashes to its digest."""
        try:
            self.fetch(ref)
        except ArtifactError:
            return False
        return True

    def read_manifest(self, name: str) -> Mapping[str, Any] | None:
        """The manifest of that name, or None if there is none."""
        with self._reached():
            try:
                data = self._fs.cat_file(self._manifest(name))
            except FileNotFoundError:
                return None
        try:
            value = files.parse_json(data)
        except ValueError as error:
            raise ArtifactError(f"the manifest {name} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ArtifactError(f"the manifest {name} is not an object")
        return value

    def create_manifest(self, name: str, value: Mapping[str, Any]) -> bool:
        """Create a manifest; False if another writer was first."""
        path, data = self._manifest(name), (files.canonical_json(value) + "\n").encode()
        with self._reached():
            if self._is_local:
                return files.create_bytes(Path(path), data)
            try:
                self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True

    def delete_manifest(self, name: str) -> None:
        """Remove a manifest whose artifact is gone or damaged."""
        with self._reached(), suppress(FileNotFoundError):  # another process may delete it at the same time
            self._fs.rm_file(self._manifest(name))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what a filesystem's library raises into an error of ours, without the secrets of the URL."""
        try:
            yield
        except CrucibleError:
            raise
        except Exception as error:
            raise RunError(f"cache_dir: {self._shown}: {in_one_line(error, self._url)}") from error

    def _manifest(self, name: str) -> str:
        return f"{self._root}/manifests/{name}.json"

    def _remote(self, name: str) -> str:
        return f"{self._root}/cas/sha256/{name[:2]}/{name}"

    def _ref(self, name: str, kind: str, size: int) -> ArtifactRef:
        return ArtifactRef(
            uri=self._fs.unstrip_protocol(self._remote(name)), sha256=name.removesuffix(_TREE), kind=kind, size=size
        )

    def _put_file(self, path: Path, digest: str) -> None:
        if self._has_good(digest):
            return
        if self._is_local:
            files.copy_file(path, Path(self._remote(digest)))
        else:
            self._fs.put_file(str(path), self._remote(digest))

    def _put_bytes(self, data: bytes, name: str) -> None:
        if self._has_good(name):
            return
        if self._is_local:
            files.write_bytes(Path(self._remote(name)), data)
        else:
            self._fs.pipe_file(self._remote(name), data)

    def _has_good(self, name: str) -> bool:
        """Whether the store holds a blob already and its content, not just its name, is right."""
        if not self._fs.exists(self._remote(name)):
            return False
        if self._is_local:
            return files.sha256_file(Path(self._remote(name))) == name.removesuffix(_TREE)
        with self._fs.open(self._remote(name), "rb") as file:
            return files.sha256_stream(file) == name.removesuffix(_TREE)

    def _fetch_tree(self, listing: Path, ref: ArtifactRef) -> Path:
        folder = self._local / "trees" / ref.sha256
        folder.mkdir(parents=True, exist_ok=True)
        entries = {entry["path"]: entry["sha256"] for entry in files.read_json(listing)}
        for path in entries:
            if not _is_inside(path):
                raise ArtifactError(f"{hide_secrets(ref.uri)}: it lists {path!r}, which lies outside")
        for found in [path for path in folder.rglob("*") if path.is_file()]:
            if found.relative_to(folder).as_posix() not in entries:
                found.unlink(missing_ok=True)
        for path, digest in entries.items():
            _link(self._fetch_blob(digest), folder / path, digest, self._local / "arriving")
        return folder

    def _fetch_blob(self, name: str) -> Path:
        """A verified local copy of a blob; a local copy that is damaged is fetched again."""
        digest = name.removesuffix(_TREE)
        local = self._local / "cas" / "sha256" / name[:2] / name
        if _is_good(local, digest):
            return local
        if not self._is_local and self._fs.exists(self._remote(name)):
            arriving = local.with_name(f"{files.TEMPORARY_MARK}{uuid.uuid4().hex}-{name}")
            arriving.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._fs.get_file(self._remote(name), str(arriving))
                if _is_good(arriving, digest):
                    arriving.replace(local)
                    return local
            finally:
                arriving.unlink(missing_ok=True)
        state = "damaged" if self._fs.exists(self._remote(name)) else "missing"
        raise ArtifactError(f"{hide_secrets(self._remote(name))}: the stored file is {state}")


def _is_good(path: Path, digest: str) -> bool:
    return path.is_file() and files.sha256_file(path) == digest


def _link(blob: Path, path: Path, digest: str, staging: Path) -> None:
    """Let ``path`` be the verified blob: the same file where the filesystem can, else a copy.

    A file that is good already is left alone, and any other is replaced in one step: another process may be reading it.
    What is not finished lies in ``staging``, never in the folder others read.
    """
    if path.exists() and (path.samefile(blob) or _is_good(path, digest)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir(parents=True, exist_ok=True)
    temporary = staging / f"{files.TEMPORARY_MARK}{uuid.uuid4().hex}"
    try:
        try:
            os.link(blob, temporary)
        except OSError:
            files.copy_file(blob, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts
