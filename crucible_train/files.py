"""The only module that writes files.

A file appears whole or not at all: it is written under a temporary name in its own folder, synced, renamed, and the
folder is synced. Nothing else in the package opens a file for writing (``tests/architecture`` checks it), so a run that
is killed at any instant leaves either the old bytes or the new ones.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY_MARK = ".tmp-"
_DISCARDED = f"{TEMPORARY_MARK}deleted-"


@contextmanager
def atomic_open(path: Path, *, makes_folder: bool = True) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing so that it appears whole when the block ends, and not at all if it raises.

    Raises:
        FileNotFoundError: its folder does not exist, and is not to be made.
    """
    if makes_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_MARK}{uuid.uuid4().hex}-{path.name}"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_open(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically as indented JSON; nulls and booleans are kept."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def create_bytes(path: Path, data: bytes) -> bool:
    """Write a new file atomically; False, and no change, if the path exists: of several writers one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_MARK}{uuid.uuid4().hex}-{path.name}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's bytes to ``path`` atomically."""
    with atomic_open(path) as target, source.open("rb") as opened:
        shutil.copyfileobj(opened, target, 1 << 20)


def append_line(path: Path, line: str) -> None:
    """Append one line to a log, or nothing if it raises.

    A kill may tear the line; whoever reads the log must drop a torn last line.
    """
    left = memoryview(f"{line}\n".encode())
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def open_log(path: Path) -> IO[bytes]:
    """Open a log to append to, for a process whose output it is to hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends: every file synced, then one rename.

    Raises:
        FileExistsError: ``path`` already exists and is not empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_MARK}{uuid.uuid4().hex}-{path.name}"
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            sync_folder(file) if file.is_dir() else sync_file(file)
        sync_folder(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed writer left behind in ``folder``. Only the owner of the folder may call this."""
    for leftover in folder.glob(f"{TEMPORARY_MARK}*"):
        remove(leftover)


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Delete a folder. It loses its name first: what a failure leaves is found by ``discarded``.

    Raises:
        OSError: not all of it could be deleted.
    """
    doomed = folder.with_name(f"{_DISCARDED}{uuid.uuid4().hex}-{folder.name}")
    folder.rename(doomed)
    sync_folder(folder.parent)
    shutil.rmtree(doomed)


def discarded(folder: Path) -> list[Path]:
    """What earlier calls of ``discard`` have left of a folder."""
    named = [path for path in folder.parent.glob(f"{_DISCARDED}*") if path.is_dir() and not path.is_symlink()]
    return sorted(path for path in named if path.name.removeprefix(_DISCARDED).partition("-")[2] == folder.name)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, together with others who do, until the block ends or the process does: ``is_held`` is true then.

    Where the file system knows no locks, nothing is held.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether anybody holds a folder; not, where there is none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system knows no locks
        return False
    finally:
        os.close(descriptor)
    return False


def num_bytes(path: Path) -> int:
    """How much a file holds, or all files in a folder; what is not there holds nothing."""
    inside = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in inside if file.is_file())


def sync_file(path: Path) -> None:
    """Flush a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, equal to what ``sha256sum`` prints."""
    with path.open("rb") as file:
        return sha256_stream(file)


def sha256_stream(file: IO[bytes]) -> str:
    """The SHA-256 of what is left to read in an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def canonical_json(value: Any) -> str:
    """One text for one value: keys sorted, no spaces, no NaN. Two equal values hash alike in every process."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON."""
    return sha256_bytes(canonical_json(value).encode())


def parse_json(data: str | bytes) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: it is not JSON, or nested deeper than can be read.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one on each line."""
    return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None where there is no file or it is not readable."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
