"""The seccomp filter: a classic BPF program over one system call, made from the tables of ``syscalls.py``.

The kernel runs it on every system call of the sandboxed program. A foreign architecture (32-bit calls through
``int 0x80``) and the x32 numbers kill the program: their numbers mean other calls.
"""

import struct

from crucible_train.sandbox.syscalls import Architecture

# classic BPF: load a word, jump if equal or greater, and with a mask, return
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
# offsets into struct seccomp_data
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_X32 = 0x40000000

_O_ACCMODE, _O_TRUNC = 0o3, 0o1000
# duplicate, close-on-exec flag, status flags, locks; not owner and signal, by which a signal reaches other processes
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
# terminal attributes and size (isatty), readable bytes, non-blocking, close-on-exec; not TIOCSTI
_IOCTL = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_PRCTL = (15, 16)  # the thread's name
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000 | 0x80  # every namespace: mount, cgroup, UTS, IPC, user, PID, network; time
_AF_UNIX, _SOCK_STREAM, _SOCK_FLAGS = 1, 1, 0o2004000  # the flags: non-blocking, close-on-exec

_Code = list[tuple[int, int, int, int]]


def bpf(architecture: Architecture) -> bytes:
    """The filter as an array of ``struct sock_filter``."""
    code: _Code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture.audit), _returns(_KILL)]
    code += [(_LOAD, 0, 0, _NUMBER)]
    if architecture.has_x32:
        code += [(_AT_LEAST, 0, 1, _X32), _returns(_KILL)]
    for number in architecture.allowed.values():
        code += [(_EQUAL, 0, 1, number), _returns(_ALLOW)]
    for name, number in architecture.checked.items():
        check = _CHECKS[name]
        code += [(_EQUAL, 0, len(check), number), *check]
    for number in architecture.absent.values():
        code += [(_EQUAL, 0, 1, number), _returns(_ERRNO | _ENOSYS)]
    code += [(_AT_LEAST, 0, 1, architecture.last_known + 1), _returns(_ERRNO | _ENOSYS), _returns(_ERRNO | _EPERM)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _returns(value: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, value)


def _argument(index: int, *, high: bool = False) -> tuple[int, int, int, int]:
    """Load one half of a 64-bit argument; both architectures are little-endian."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index + (4 if high else 0))


def _one_of(index: int, values: tuple[int, ...]) -> _Code:
    accepted: _Code = []
    for value in values:
        accepted += [(_EQUAL, 0, 1, value), _returns(_ALLOW)]
    return [_argument(index), *accepted, _returns(_ERRNO | _EPERM)]


def _masked(index: int, mask: int, value: int, *, allow: bool) -> _Code:
    """Whether ``argument & mask == value`` is what is allowed, or what is denied."""
    equal, other = (_ALLOW, _ERRNO | _EPERM) if allow else (_ERRNO | _EPERM, _ALLOW)
    return [_argument(index), (_AND, 0, 0, mask), (_EQUAL, 0, 1, value), _returns(equal), _returns(other)]


_CHECKS: dict[str, _Code] = {
    # truncating through a read-only descriptor passes a Landlock older than its third version
    "open": _masked(1, _O_ACCMODE | _O_TRUNC, _O_TRUNC, allow=False),
    "openat": _masked(2, _O_ACCMODE | _O_TRUNC, _O_TRUNC, allow=False),
    "fcntl": _one_of(1, _FCNTL),
    "ioctl": _one_of(1, _IOCTL),
    "clone": _masked(0, _CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD, allow=True),
    "prctl": _one_of(0, _PRCTL),
    "prlimit64": _one_of(0, (0,)),  # its own limits
    "socketpair": [
        _argument(0),
        (_EQUAL, 1, 0, _AF_UNIX),
        _returns(_ERRNO | _EPERM),
        # a pair of datagram sockets could send to any address
        *_masked(1, 0xFFFFFFFF & ~_SOCK_FLAGS, _SOCK_STREAM, allow=True),
    ],
    # a null address: what the socket pair is connected to
    "sendto": [
        _argument(4),
        (_EQUAL, 1, 0, 0),
        _returns(_ERRNO | _EPERM),
        _argument(4, high=True),
        (_EQUAL, 0, 1, 0),
        _returns(_ALLOW),
        _returns(_ERRNO | _EPERM),
    ],
}
