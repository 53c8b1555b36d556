"""Checkpoints that can be trusted: written whole, sealed by a manifest of digests, checked before they are used.

A checkpoint is a folder ``step-00000010``. It appears by one rename, after all its files are on the disk. Its
``manifest.json`` lists size and SHA-256 of every file and is itself in canonical form with its own digest, so that any
changed bit in any file, the manifest included, is noticed. The safetensors format alone notices neither a flipped bit
nor a tail of zeros.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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

    Raises:
        CheckpointError: it could not be written, for want of space perhaps; nothing of it is left.
    """
    try:
        with files.atomic_folder(folder) as temporary:
            fill(temporary)
            digest = _seal(temporary, folder.name)
            if folder.exists() or folder.is_symlink():
                discard(folder)
    except Exception as error:  # what a full disk raises depends on the library that wrote
        raise CheckpointError(f"{folder}: it could not be written: {error}") from error
    return digest


def verify(folder: Path) -> str:
    """Check every file against the manifest; the manifest's digest.

    Raises:
        CheckpointError: something is missing, changed or cannot be read; the text says what.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = files.parse_json(text)
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
        try:
            is_same = path.stat().st_size == entry["size"] and files.sha256_file(path) == entry["sha256"]
        except OSError as error:
            raise CheckpointError(f"{folder}: {name} cannot be read: {error.strerror}") from error
        if not is_same:
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

    The folders are the truth, and the index is made from them. It never lists one that was deleted on purpose, so one
    that is listed but not there has been lost.
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
        names = {entry.name for entry in self.path.iterdir()}
        steps = (int(match.group(1)) for match in map(_NAME.fullmatch, names) if match)
        return sorted(step for step in steps if checkpoint_name(step) in names)

    def newest_good(
        self, report: Callable[[str], None], check: Callable[[Path], None] | None = None
    ) -> Checkpoint | None:
        """The newest checkpoint that is sound; None where none was ever written.

        Args:
            report: is told of each damaged or lost one, in a line.
            check: may refuse a sound one by raising ``CheckpointError``.

        Raises:
            CheckpointError: there are checkpoints, or were, but none is sound.
        """
        steps = self.steps()
        lost = sorted(self._listed() - set(steps))
        for step in lost:
            report(f"checkpoint passed over: {self.path / checkpoint_name(step)}: it is gone")
        for step in reversed(steps):
            folder = self.path / checkpoint_name(step)
            try:
                digest = verify(folder)
                if check is not None:
                    check(folder)
            except CheckpointError as error:
                report(f"checkpoint passed over: {error}")
            else:
                return Checkpoint(folder, step, digest)
        if steps or lost:
            raise CheckpointError(
                f"{self.path}: none of its {len(steps) + len(lost)} checkpoints is sound; "
                "checkpoint.resume_from_checkpoint=never starts anew"
            )
        return None

    def prune(self, keep: int, protect: frozenset[int]) -> None:
        """Keep the ``keep`` newest and the protected ones, and list them. To be called after a save is durable."""
        steps = self.steps()
        self._keep({*steps[max(0, len(steps) - keep) :], *(protect & {*steps})})

    def discard_after(self, step: int) -> None:
        """Delete what stands after ``step``, damaged or of a run that has been rewound, and list what stays."""
        self._keep({kept for kept in self.steps() if kept <= step})

    def _keep(self, kept: set[int]) -> None:
        """List some and delete the others, in that order: the index never lists what is being deleted."""
        found = ((step, files.read_json(self.path / checkpoint_name(step) / MANIFEST)) for step in sorted(kept))
        entries = [
            {
                "name": checkpoint_name(step),
                "step": step,
                "path": f"{self.path.name}/{checkpoint_name(step)}",
                "sha256": manifest.get("sha256"),
            }
            for step, manifest in found
            if isinstance(manifest, dict)
        ]
        files.write_text(self.index_path, "".join(json.dumps(entry) + "\n" for entry in entries))
        for step in set(self.steps()) - kept:
            discard(self.path / checkpoint_name(step))

    def _listed(self) -> set[int]:
        """The steps in the index, as far as it can be read."""
        try:
            lines = self.index_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return set()
        return {step for line in lines if (step := _step_of(line)) is not None}


def discard(folder: Path) -> None:
    """Delete a checkpoint so that it is never seen half deleted."""
    doomed = folder.with_name(f"{files.TEMPORARY_MARK}{uuid.uuid4().hex}-{folder.name}")
    folder.rename(doomed)
    files.remove(doomed)


def _seal(folder: Path, name: str) -> str:
    """Write the manifest over the files of a folder; its digest."""
    listed = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    body = {
        "format": _FORMAT,
        "name": name,
        "files": {name: {"sha256": files.sha256_file(p), "size": p.stat().st_size} for name, p in listed.items()},
    }
    digest = files.sha256_json(body)
    files.write_text(folder / MANIFEST, files.canonical_json(body | {"sha256": digest}) + "\n")
    return digest


def _step_of(line: str) -> int | None:
    """The step of an entry of the index; None where the line is damaged."""
    try:
        step = files.parse_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
