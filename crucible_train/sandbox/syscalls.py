"""The system calls a sandboxed program may make, with their numbers on x86-64 and on aarch64.

It is a list of what is allowed: what a later kernel adds is denied until somebody lists it. It holds what a
single-process CPython needs (files by the file layers, memory, threads, timers, ``asyncio``'s own socket pair) and
nothing that makes a process, runs a program, reaches another process, opens a socket, or changes a mode, an owner or a
time stamp, which Landlock does not govern.
"""

import platform
from dataclasses import dataclass

# name, number on x86-64, number on aarch64; "-" where that architecture has no such call
_ALLOWED = """
read 0 63 | readv 19 65 | write 1 64 | writev 20 66 | pread64 17 67 | pwrite64 18 68 | preadv 295 69 | pwritev 296 70
lseek 8 62 | close 3 57 | close_range 436 436 | dup 32 23 | dup2 33 - | dup3 292 24 | pipe 22 - | pipe2 293 59
poll 7 - | ppoll 271 73 | select 23 - | pselect6 270 72 | epoll_create 213 - | epoll_create1 291 20 | epoll_ctl 233 21
epoll_wait 232 - | epoll_pwait 281 22 | epoll_pwait2 441 441 | eventfd2 290 19 | fsync 74 82 | fdatasync 75 83
ftruncate 77 46 | sendfile 40 71 | fadvise64 221 223 | flock 73 32
stat 4 - | lstat 6 - | fstat 5 80 | newfstatat 262 79 | statx 332 291 | access 21 - | faccessat 269 48
faccessat2 439 439 | readlink 89 - | readlinkat 267 78 | getcwd 79 17 | chdir 80 49 | fchdir 81 50 | getdents64 217 61
mkdir 83 - | mkdirat 258 34 | rmdir 84 - | unlink 87 - | unlinkat 263 35 | rename 82 - | renameat 264 38
renameat2 316 276 | symlink 88 - | symlinkat 266 36 | umask 95 166
mmap 9 222 | munmap 11 215 | mprotect 10 226 | mremap 25 216 | madvise 28 233 | brk 12 214 | msync 26 227
membarrier 324 283 | futex 202 98 | set_robust_list 273 99 | rseq 334 293 | set_tid_address 218 96 | gettid 186 178
sched_yield 24 124 | sched_getaffinity 204 123 | getcpu 309 168
rt_sigaction 13 134 | rt_sigprocmask 14 135 | rt_sigreturn 15 139 | rt_sigsuspend 130 133 | rt_sigpending 127 136
sigaltstack 131 132 | alarm 37 - | setitimer 38 103 | getitimer 36 102 | pause 34 - | restart_syscall 219 128
clock_gettime 228 113 | clock_getres 229 114 | clock_nanosleep 230 115 | nanosleep 35 101 | gettimeofday 96 169
time 201 - | times 100 153
getpid 39 172 | getppid 110 173 | getuid 102 174 | geteuid 107 175 | getgid 104 176 | getegid 108 177
getresuid 118 148 | getresgid 120 150 | getgroups 115 158 | getpgrp 111 - | getrlimit 97 163 | setrlimit 160 164
getrusage 98 165 | sysinfo 99 179 | getrandom 318 278 | arch_prctl 158 - | exit 60 93 | exit_group 231 94
recvfrom 45 207 | shutdown 48 210 | getsockopt 55 209 | getsockname 51 204 | getpeername 52 205
"""

# allowed with some arguments only (see seccomp.py)
_CHECKED = """
open 2 - | openat 257 56 | fcntl 72 25 | ioctl 16 29 | clone 56 220 | prctl 157 167 | prlimit64 302 261
socketpair 53 199 | sendto 44 206
"""

# answered "not implemented", on which the C library takes the older call that can be checked
_ABSENT = "clone3 435 435 | openat2 437 437"

_LAST_KNOWN = 462  # of both tables; what is newer is "not implemented" too


@dataclass(frozen=True, slots=True)
class Architecture:
    """One processor architecture: its audit number, and the numbers of its system calls by name."""

    audit: int
    allowed: dict[str, int]
    checked: dict[str, int]
    absent: dict[str, int]
    capset: int
    last_known: int = _LAST_KNOWN
    has_x32: bool = False


def _column(table: str, column: int) -> dict[str, int]:
    rows = (entry.split() for line in table.strip().splitlines() for entry in line.split("|"))
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _architecture(column: int, audit: int, capset: int, *, has_x32: bool = False) -> Architecture:
    allowed, checked, absent = (_column(table, column) for table in (_ALLOWED, _CHECKED, _ABSENT))
    return Architecture(audit, allowed, checked, absent, capset, has_x32=has_x32)


ARCHITECTURES = {
    "x86_64": _architecture(1, 0xC000003E, 126, has_x32=True),
    "aarch64": _architecture(2, 0xC00000B7, 91),
}


def native() -> Architecture | None:
    """This machine's architecture, if the tables know it."""
    return ARCHITECTURES.get(platform.machine())
