"""Digests of files that may be large, remembered for as long as the files do not change."""

import time
from pathlib import Path

from crucible_train import files

# A file that changed within this time may change again with the same time of change: clocks of filesystems are coarse.
_SETTLED_NS = 2_000_000_000


class DigestMemory:
    """Remembers the SHA-256 of a file by its path, size, times of change and inode."""

    def __init__(self, path: Path) -> None:
        """Keep the memory in the file ``path``; it may be deleted at any time."""
        self._path = path
        known = files.read_json(path)
        self._known: dict[str, list[object]] = known if isinstance(known, dict) else {}

    def file(self, path: Path) -> str:
        """The SHA-256 of a file."""
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        key = str(path.resolve())
        entry = self._known.get(key)
        if isinstance(entry, list) and entry[:-1] == state:
            return str(entry[-1])
        is_settled = abs(time.time_ns() - stat.st_ctime_ns) > _SETTLED_NS
        digest = files.sha256_file(path)
        if is_settled:
            self._known[key] = [*state, digest]
            files.write_json(self._path, self._known)
        return digest

    def tree(self, folder: Path, patterns: tuple[str, ...] = ("*",)) -> str:
        """The SHA-256 of the list of names and digests of a folder's own files that match one of ``patterns``."""
        names = sorted({path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
        return files.sha256_json([[name, self.file(folder / name)] for name in names])
