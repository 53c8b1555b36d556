"""Which layers this machine offers, and what each is told to do."""

import os
import platform
import random
import shutil
import stat
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from crucible_train.sandbox import landlock, seccomp, syscalls
from crucible_train.sandbox.folder import reachable
from crucible_train.sandbox.limits import Limits

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
LAUNCHER = "/launcher"  # where bubblewrap shows the launcher's folder
_FILE_RIGHTS = 0b110 | 1 << 14  # what a rule for a single file may hold: write, read, truncate
_FREE_UIDS = range(1_880_000_000, 1_880_000_000 + (1 << 24))  # above the ranges of container managers


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers in use.

    Attributes:
        bwrap: the path of bubblewrap, which gives the namespaces; None without them.
        landlock: the version of Landlock; 0 without it.
        seccomp: whether the filter is installed.
        own_uid: whether each run gets a user of its own, which takes root.
        why_not: for each layer that is missing, the reason.
    """

    bwrap: str | None
    landlock: int
    seccomp: bool
    own_uid: bool
    why_not: Mapping[str, str]

    @property
    def confines(self) -> bool:
        """Whether files and everything else are out of reach: seccomp, and one of the two layers that close files."""
        return self.seccomp and (self.landlock > 0 or self.bwrap is not None)

    def without(self, layer: str, reason: str) -> "Layers":
        """The same without ``"bwrap"``, ``"landlock"``, ``"seccomp"`` or ``"own_uid"``."""
        absent: dict[str, Any] = {"bwrap": None, "landlock": 0, "seccomp": False, "own_uid": False}
        changes = {layer: absent[layer], "why_not": {**self.why_not, layer: reason}}
        return replace(self, **changes)

    def __str__(self) -> str:
        """One line for a log."""
        names = {
            "namespaces (bubblewrap)": self.bwrap is not None,
            f"Landlock {self.landlock}": self.landlock > 0,
            "seccomp": self.seccomp,
            "a user of its own": self.own_uid,
        }
        return ", ".join([*(name for name, there in names.items() if there), "rlimits"])


def installed() -> Layers:
    """What seems to be there; a run shows what works."""
    why_not: dict[str, str] = {}
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        why_not["bwrap"] = "bubblewrap is not installed"
    version = landlock.abi()
    if not version:
        why_not["landlock"] = "this kernel offers no Landlock (Linux 5.13 or later, switched on)"
    known = sys.platform.startswith("linux") and syscalls.native() is not None
    if not known:
        why_not["seccomp"] = f"seccomp filters are written for Linux on x86-64 and aarch64, not {platform.platform()}"
    own_uid = os.geteuid() == 0 and _uids() is not None
    return Layers(bwrap if known else None, version if known else 0, known, own_uid, why_not)


@cache
def _uids() -> range | None:
    """User ids nobody has, of those this user namespace maps."""
    try:
        rows = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return None
    last = max(first + length for first, _, length in rows)
    return _FREE_UIDS if last > _FREE_UIDS.stop else range(last - 5000, last - 1000) if last >= 60_000 else None


def new_uid(layers: Layers) -> int | None:
    """A user for one run: another run of this moment has another one, all but surely."""
    uids = _uids()
    return random.SystemRandom().choice(uids) if layers.own_uid and uids else None


@cache
def interpreter() -> Path:
    """This interpreter itself, not the link to it in a virtual environment."""
    return Path(sys.executable).resolve()


@cache
def readable() -> tuple[str, ...]:
    """What a program may read: the standard library and the shared libraries below it."""
    paths = sysconfig.get_paths()
    base = Path(sys.base_prefix)
    own = {paths["stdlib"], paths["platstdlib"], str(base / "lib")} if base != Path("/usr") else {paths["stdlib"]}
    return landlock.existing((*sorted(own), *_LIBRARIES, *_FILES))


@cache
def _keep_read(folder: Path, imports: tuple[str, ...], *, mounted: bool) -> bool:
    """Whether the run's user could not come to what is imported or to the runs' folder.

    Then the launcher keeps the one capability that passes closed folders, inside what Landlock allows and mounts show.
    Folders above a mount are bubblewrap's own and open.
    """
    if mounted:
        return not all(Path(path).stat().st_mode & stat.S_IROTH for path in imports)
    return not all(reachable(Path(path)) for path in (sysconfig.get_paths()["stdlib"], str(folder), *imports))


def confinement(
    layers: Layers, limits: Limits, folder: Path, uid: int | None, imports: Sequence[str]
) -> dict[str, Any]:
    """The part of the launcher's request that says how it confines itself."""
    architecture = syscalls.native()
    mounted = layers.bwrap is not None
    return {
        "landlock": _landlock(layers.landlock, imports) if layers.landlock else None,
        "seccomp": _filter().hex() if layers.seccomp else "",
        "capset": architecture.capset if architecture and os.geteuid() == 0 else None,
        "is_linux": sys.platform.startswith("linux"),
        "uid": uid,
        "keep_read": uid is not None and _keep_read(folder.parent, tuple(imports), mounted=mounted),
        "rlimits": _rlimits(limits, own_uid=uid is not None),
        "release": platform.release(),
        "machine": platform.machine(),
    }


@cache
def _filter() -> bytes:
    architecture = syscalls.native()
    assert architecture is not None
    return seccomp.bpf(architecture)


def _landlock(version: int, imports: Sequence[str]) -> dict[str, Any]:
    paths: list[tuple[str, int]] = [(path, landlock.READ) for path in (*readable(), *imports)]
    paths += [(path, landlock.DEVICE) for path in landlock.existing(_DEVICES)]
    return {
        "create": landlock.CREATE_RULESET,
        "add": landlock.ADD_RULE,
        "restrict": landlock.RESTRICT_SELF,
        "attributes": landlock.ruleset(version).hex(),
        "handled": landlock.handled(version),
        "flags": landlock.restrict_flags(version),
        "file_rights": _FILE_RIGHTS,
        "paths": [*paths, (".", landlock.FOLDER)],
    }


def _rlimits(limits: Limits, *, own_uid: bool) -> dict[str, int]:
    # the kernel counts the threads of a user. A user of its own has none yet; of ours we know an upper bound only:
    # those of the whole machine
    threads = limits.num_threads + (0 if own_uid else _threads_of_the_machine())
    return {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_CPU": max(1, -int(-limits.cpu_s // 1)),
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.num_open,
        "RLIMIT_NPROC": threads,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        **({"RLIMIT_MSGQUEUE": 0} if sys.platform.startswith("linux") else {}),
    }


def _threads_of_the_machine() -> int:
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])
    except OSError:
        return 4096


def command(layers: Layers, folder: Path, imports: Sequence[str], launcher: str) -> list[str]:
    """The command line of the interpreter; inside bubblewrap, where that is used, with the launcher at ``LAUNCHER``."""
    python = [str(interpreter()), "-s", "-S", "-P", "-B", "-X", "utf8"]
    if layers.bwrap is None:
        return python
    as_root = os.geteuid() == 0
    words = [layers.bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if as_root:
        # what it takes to become the run's user. Process 1 stays bubblewrap's, which that user cannot touch: if we are
        # killed, so is bubblewrap, but without capabilities it could not pass that on to a program of another user
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_DAC_READ_SEARCH"):
            words += ["--cap-add", capability]
    else:
        words += ["--unshare-user", "--as-pid-1"]
    words += ["--die-with-parent", "--new-session", "--hostname", "sandbox"]
    paths = (*readable(), str(interpreter()), *imports)
    devices = landlock.existing(_DEVICES)
    # bubblewrap gives the folders above a mount the rights they have outside, which may keep the run's user out
    for parent in sorted({str(above) for path in (*paths, *devices, str(folder)) for above in Path(path).parents}):
        words += ["--perms", "0755", "--dir", parent] if parent != "/" else []
    for path in paths:
        words += ["--ro-bind", path, path]
    words += ["--ro-bind", launcher, LAUNCHER]
    for path in devices:
        words += ["--dev-bind", path, path]
    # the root is a tmpfs that counts against nobody, so it is closed for writing once it is built
    words += ["--bind", str(folder), str(folder), "--remount-ro", "/", "--chdir", str(folder), "--"]
    return words + python
