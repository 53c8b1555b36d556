"""The blob port: content-addressed files and the small manifests that name them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from crucible_train.types import ArtifactRef


@runtime_checkable
class BlobStore(Protocol):
    """Keeps files by their digest.

    Invariants, which ``tests/contracts/test_blob_store_port.py`` holds every adapter to:

    - A blob or a tree appears whole or not at all, and its name is its SHA-256.
    - ``fetch`` gives bytes that hash to the reference, or raises ``ArtifactError``; it never gives others.
    - A manifest is created once: of several writers one wins, and every reader sees the winner's.
    """

    def put(self, path: Path, kind: str) -> ArtifactRef:
        """Store a file, or a folder as a tree of files."""

    def fetch(self, ref: ArtifactRef) -> Path:
        """A local, verified, read-only copy of the file or folder.

        Raises:
            ArtifactError: it is missing, or its content is not what the digest says.
        """

    def is_intact(self, ref: ArtifactRef) -> bool:
        """Whether everything the reference names is there and hashes to its digest."""

    def read_manifest(self, name: str) -> Mapping[str, Any] | None:
        """The manifest of that name, or None if there is none.

        Raises:
            ArtifactError: it is there, and cannot be read.
        """

    def create_manifest(self, name: str, value: Mapping[str, Any]) -> bool:
        """Create a manifest; False if another writer was first."""

    def delete_manifest(self, name: str) -> None:
        """Remove a manifest whose artifact is gone or damaged."""
