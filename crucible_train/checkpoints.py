"""Checkpoints that can be trusted: written whole, sealed by a manifest of digests, checked before they are used.

A checkpoint is a folder ``step-00000010``. It appears by one rename, after all its files are on the disk. Its
``manifest.json`` lists size and SHA-256 of every file and is itself in canonical form with its own digest, so that any
changed bit in any file, the manifest included, is noticed. The safetensors format alone notices neither a flipped bit
nor a tail of zeros.
"""

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.errors import CheckpointError

MANIFEST = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


def checkpoint_name(step: int) -> str:
    """The folder name of the state after ``step`` optimizer steps."""
    return f"step-{step:08d}"


def write_checkpoint(folder: Path, fill: Callable[[Path], None]) -> str:
    """Create ``folder`` from what ``fill`` writes into a temporary one; replaces a damaged one of that name.

    Returns:
        The digest of its manifest, which stands for everything in it.
    """
    if folder.exists():
        discard(folder)
    with files.atomic_folder(folder) as temporary:
        fill(temporary)
        listed = {path.relative_to(temporary).as_posix(): path for path in _files(temporary)}
        body = {
            "format": _FORMAT,
            "name": folder.name,
            "files": {name: {"sha256": files.sha256_file(p), "size": p.stat().st_size} for name, p in listed.items()},
        }
        digest = files.sha256_json(body)
        files.write_text(temporary / MANIFEST, files.canonical_json(body | {"sha256": digest}) + "\n")
    return digest


def verify(folder: Path) -> str:
    """Check every file against the manifest; the manifest's digest.

    Raises:
        CheckpointError: something is missing, changed or too much; the text says what.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        is_sealed = text == files.canonical_json(manifest) + "\n" and files.sha256_json(body) == manifest["sha256"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: it has no {MANIFEST}") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        is_sealed = False
    if not is_sealed:
        raise CheckpointError(f"{folder}: its {MANIFEST} is damaged")
    if body["format"] != _FORMAT or body["name"] != folder.name:
        raise CheckpointError(f"{folder}: its {MANIFEST} is of another checkpoint or a later version")
    found = {path.relative_to(folder).as_posix() for path in _files(folder)} - {MANIFEST}
    if missing := sorted(set(body["files"]) - found):
        raise CheckpointError(f"{folder}: {missing[0]} is missing")
    for name, entry in body["files"].items():
        path = folder / name
        if path.stat().st_size != entry["size"] or files.sha256_file(path) != entry["sha256"]:
            raise CheckpointError(f"{folder}: {name} is damaged")
    return str(manifest["sha256"])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    step: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """The checkpoints of one run, and the index ``checkpoints.jsonl`` beside them.

    The folders are the truth; the index is made again from them where it is missing or damaged.
    """

    run_dir: Path

    @property
    def path(self) -> Path:
        """The folder that holds the checkpoints."""
        return self.run_dir / "checkpoints"

    @property
    def index_path(self) -> Path:
        """One JSON object a checkpoint, oldest first."""
        return self.run_dir / "checkpoints.jsonl"

    def steps(self) -> list[int]:
        """The steps for which there is a folder, sound or not, oldest first."""
        if not self.path.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def newest_good(self, report: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is sound; None where none was ever written.

        Args:
            report: is told of each damaged one, in a line.

        Raises:
            CheckpointError: there are checkpoints, but none is sound.
        """
        steps = self.steps()
        for step in reversed(steps):
            folder = self.path / checkpoint_name(step)
            try:
                return Checkpoint(folder, step, verify(folder))
            except CheckpointError as error:
                report(f"checkpoint passed over: {error}")
        if steps:
            raise CheckpointError(
                f"{self.path}: none of its {len(steps)} checkpoints is sound; "
                "checkpoint.resume_from_checkpoint=never starts anew"
            )
        return None

    def record(self, step: int, **facts: Any) -> None:
        """List a checkpoint in the index; entries whose folder is gone leave it, later ones too."""
        kept = [entry for entry in self._read_index() if entry["step"] < step and self._is_there(entry["step"])]
        kept.append(
            {"name": checkpoint_name(step), "step": step, "path": f"checkpoints/{checkpoint_name(step)}"} | facts
        )
        files.write_text(self.index_path, "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in kept))

    def prune(self, keep: int, protect: frozenset[int]) -> None:
        """Delete all but the ``keep`` newest and the protected ones. To be called after a save is durable."""
        steps = self.steps()
        for step in steps[: max(0, len(steps) - keep)]:
            if step not in protect:
                discard(self.path / checkpoint_name(step))

    def discard_after(self, step: int) -> None:
        """Delete what stands after ``step``: damaged, or of a run that has been rewound."""
        for later in self.steps():
            if later > step:
                discard(self.path / checkpoint_name(later))

    def _is_there(self, step: int) -> bool:
        return (self.path / checkpoint_name(step) / MANIFEST).is_file()

    def _read_index(self) -> Iterator[dict[str, Any]]:
        try:
            lines = self.index_path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                yield entry


def discard(folder: Path) -> None:
    """Delete a checkpoint so that it is never seen half deleted."""
    doomed = folder.with_name(f"{files.TEMPORARY_MARK}{uuid.uuid4().hex}-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
