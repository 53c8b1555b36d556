"""What Landlock offers on this kernel, and the rules of the sandbox in its terms.

Its versions: 1 files (Linux 5.13), 2 moving between folders, 3 truncation, 4 TCP, 5 device ioctls, 6 signals and
abstract Unix sockets (6.12), 7 quiet audit logs. What a version lacks, seccomp denies.
"""

import ctypes
import os
import struct
import sys

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION = 1  # a flag of CREATE_RULESET: answer the version, make nothing

_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(1, 6))
_MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_ALL = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}

READ = _READ_FILE | _READ_DIR
DEVICE = _READ_FILE | _WRITE_FILE
# no devices, sockets or FIFOs, and nothing to execute
FOLDER = READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE


def abi() -> int:
    """The version of Landlock in this kernel; 0 where there is none, or it is switched off."""
    if not sys.platform.startswith("linux"):
        return 0
    version: int = ctypes.CDLL(None, use_errno=True).syscall(CREATE_RULESET, None, 0, _VERSION)
    return max(0, version)


def handled(version: int) -> int:
    """Every right over files that this version can deny."""
    return _ALL[min(version, max(_ALL))]


def ruleset(version: int) -> bytes:
    """``struct landlock_ruleset_attr``: the files, and from version 4 TCP, from 6 signals and abstract sockets."""
    words = [handled(version), *([0b11] if version >= 4 else []), *([0b11] if version >= 6 else [])]
    return struct.pack(f"={len(words)}Q", *words)


def restrict_flags(version: int) -> int:
    """From version 7 on, denials of sandboxed code are kept out of the machine's audit log."""
    return 1 if version >= 7 else 0


def existing(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``paths`` that are there."""
    return tuple(path for path in paths if os.path.exists(path))  # noqa: PTH110 - strings go to the launcher
