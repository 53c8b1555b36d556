"""The fresh folder of a run: made, watched while code that means harm writes to it, and removed.

Nothing in it is ever opened but folders, through descriptors that follow no link, so a planted symbolic link, FIFO or
device is only a name to unlink. Folders nested too deep for a path or for recursion are removed in constant depth.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH = 32
PREFIX = "crucible-sandbox-"


@contextmanager
def fresh_folder(uid: int | None) -> Iterator[Path]:
    """A new empty folder, owned by ``uid`` (by us if None) and closed to others; gone with all it holds at the end."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        if uid is not None:
            os.chown(path, uid, -1)
            path.chmod(0o770)  # our group may enter: bubblewrap does, without our capabilities
        yield path
    finally:
        remove(path)


def usage(path: Path, most: int) -> tuple[int, int]:
    """Entries below ``path`` and bytes they hold on disk; too many, too deep or hidden is more than ``most``."""
    entries = held = 0
    waiting: list[tuple[str, int]] = [(str(path), 0)]
    while waiting and entries <= most:
        folder, depth = waiting.pop()
        if depth > _DEPTH:
            return most + 1, held
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    entries += 1
                    if entries > most:
                        break
                    held += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, depth + 1))
        except PermissionError:
            return most + 1, held  # a folder made unreadable hides what is in it
        except OSError:
            continue  # it went while we looked; the next look comes soon
    return entries, held


def remove(path: Path) -> None:
    """Remove a folder of a run that is over, whatever was left in it."""
    try:
        top = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    try:
        _empty(top)
    finally:
        os.close(top)
    path.rmdir()


def _empty(top: int) -> None:
    """Unlink files, and lift what a folder holds into ``top`` before it goes: the depth stays two."""
    lifted = 0
    waiting = os.listdir(top)
    while waiting:
        name = waiting.pop()
        if not _is_folder(name, top):
            os.unlink(name, dir_fd=top)
            continue
        os.chmod(name, 0o700, dir_fd=top)  # it may have been made without rights
        inner = os.open(name, _FOLDER, dir_fd=top)
        try:
            for child in os.listdir(inner):  # noqa: PTH208 - a descriptor
                if not _is_folder(child, inner):
                    os.unlink(child, dir_fd=inner)
                    continue
                os.chmod(child, 0o700, dir_fd=inner)
                new, lifted = f"{PREFIX}{os.urandom(8).hex()}-{lifted}", lifted + 1
                os.rename(child, new, src_dir_fd=inner, dst_dir_fd=top)
                waiting.append(new)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)


def _is_folder(name: str, folder: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def reachable(path: Path) -> bool:
    """Whether any user can come to ``path`` and read it: every folder above lets others pass."""
    parents = path.resolve().parents
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in parents) and bool(path.stat().st_mode & stat.S_IROTH)


def nameless(pid: int, path: Path, most: int) -> int:
    """Bytes on disk of files below ``path``'s file system that a process or its children hold, open or mapped, unnamed.

    The count ends above ``most``. What this user may not look into counts 0: a process of the same user hides its
    descriptors, and only root with the capability to trace sees them.
    """
    device = path.stat().st_dev
    seen: set[int] = set()
    held = 0
    for one in _with_children(pid):
        for kind in ("fd", "map_files"):
            with suppress(OSError), os.scandir(f"/proc/{one}/{kind}") as found:
                for entry in found:
                    with suppress(OSError):
                        info = entry.stat()
                        is_hidden = info.st_nlink == 0 and info.st_dev == device and stat.S_ISREG(info.st_mode)
                        if is_hidden and info.st_ino not in seen:
                            seen.add(info.st_ino)
                            held += info.st_blocks * 512
                    if held > most:
                        return held
    return held


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _with_children(int(child))
