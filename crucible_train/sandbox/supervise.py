"""One process watched from outside: started, read within bounds, ended with all it started.

The launcher makes the sandbox; this side believes only what it sees itself: bytes within their bounds, the clock, the
folder, the exit status. The program is one process, as seccomp lets it make no other, so ending that process ends all.
"""

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

from crucible_train.errors import SandboxError
from crucible_train.sandbox.folder import nameless, usage
from crucible_train.sandbox.limits import Limits, Status

_START_S = 60.0  # until the launcher says it is ready; a machine with 64 runs at once may be slow
_TICK_S = 0.05  # how often the clock, the folder and a cancelled caller are looked at
_DEATH_S = 30.0  # until a killed process is gone
_CHUNK = 1 << 16
_SHELL = 128  # bubblewrap reports the signal that ended its program as a shell does, as an exit status above this


@dataclass(slots=True)
class Ended:
    """What was seen of a run: ``returncode`` is an exit status or minus a signal, ``stopped`` why we ended it."""

    stdout: bytes
    stderr: bytes
    channel: bytes
    returncode: int
    duration_s: float
    stopped: Status | None


@dataclass(slots=True)
class _Stream:
    """What came out of one pipe, up to its bound."""

    descriptor: int
    most: int
    data: bytearray = field(default_factory=bytearray)
    open: bool = True

    def read(self) -> bool:
        """Take what is there; False once it is more than the bound."""
        while self.open and len(self.data) <= self.most:
            try:
                chunk = os.read(self.descriptor, _CHUNK)
            except BlockingIOError:
                return True
            self.open = bool(chunk)
            self.data += chunk
        return len(self.data) <= self.most


class Supervisor:
    """Runs one command once."""

    def __init__(self, limits: Limits, folder: Path, ready: bytes, channel_bytes: int, cancelled: Event) -> None:
        """Watch a run in ``folder``.

        ``ready`` is the line the launcher sends when the sandbox is closed, before the program starts. ``cancelled``
        may be set from any thread; the run then ends within a tick.
        """
        self._cancelled = cancelled
        self._limits = limits
        self._folder = folder
        self._ready = ready
        self._channel_bytes = channel_bytes
        self._started: float | None = None
        self._inside: int | None = None  # with bubblewrap, a descriptor of the first process of its namespace

    def run(self, command: Sequence[str], request: bytes, stdin: bytes, bubblewrap: bool) -> Ended:
        """Start ``command``, with the request's and the channel's descriptors added, and stay until nothing is left."""
        with contextlib.ExitStack() as stack:
            asked, given = (stack.enter_context(_read_only(content)) for content in (request, stdin))
            pipes = [os.pipe() for _ in range(4)]  # standard output, standard error, the channel, bubblewrap's news
            readers, writers = ([pipe[end] for pipe in pipes] for end in (0, 1))
            for reader in readers:
                stack.callback(os.close, reader)
                os.set_blocking(reader, False)
            words = list(command)
            if bubblewrap:
                words[1:1] = ["--info-fd", str(writers[3])]
            try:
                process = subprocess.Popen(
                    [*words, str(asked), str(writers[2])],
                    stdin=given,
                    stdout=writers[0],
                    stderr=writers[1],
                    pass_fds=(asked, writers[2], *writers[3:] * bubblewrap),
                    cwd=self._folder,
                    env={"PYTHONHASHSEED": "0"},  # a solution that prints a set is right or wrong each time
                    start_new_session=True,
                )
            except OSError as problem:
                raise SandboxError(f"the sandbox's process cannot be started: {problem}") from problem
            finally:
                for writer in writers:
                    os.close(writer)
            output = self._limits.output_bytes
            streams = [
                _Stream(readers[0], output),
                _Stream(readers[1], output),
                _Stream(readers[2], self._channel_bytes),
            ]
            ended = self._watch(process, streams, readers[3] if bubblewrap else None)
            if bubblewrap and _SHELL < ended.returncode <= _SHELL + signal.SIGRTMAX:
                return replace(ended, returncode=_SHELL - ended.returncode)
            return ended

    def _watch(self, process: subprocess.Popen[bytes], streams: list[_Stream], news: int | None) -> Ended:
        began = time.monotonic()
        try:
            stopped = self._until_over(process, streams, news, began)
        finally:
            duration_s = time.monotonic() - (self._started or began)
            if news is not None and self._inside is None and not _is_over(process.pid):
                self._inside = _first_inside(news)
            try:
                _kill(process.pid, self._inside)
            finally:
                process.wait()
        for stream in streams:
            stopped = stopped if stream.read() else (stopped or Status.OUTPUT)
        out, err, channel = (bytes(stream.data[: stream.most]) for stream in streams)
        return Ended(out, err, channel, process.returncode, duration_s, stopped)

    def _until_over(
        self, process: subprocess.Popen[bytes], streams: list[_Stream], news: int | None, began: float
    ) -> Status | None:
        poll = select.poll()
        with _exit_descriptor(process.pid) as exited:
            if exited is not None:
                poll.register(exited, select.POLLIN)
            for stream in streams:
                poll.register(stream.descriptor, select.POLLIN)
            if news is not None:
                poll.register(news, select.POLLIN)
            looked = began
            while True:
                events = poll.poll(_TICK_S * 1000)
                self._note_inside(news, events, poll)
                if not self._read(streams, poll):
                    return Status.OUTPUT
                if _is_over(process.pid):
                    return None
                now = time.monotonic()
                if self._cancelled.is_set() or self._late(now, began):
                    return Status.TIMEOUT
                if now - looked >= _TICK_S:
                    looked = now
                    if not self._folder_fits(process.pid):
                        return Status.FILES

    def _note_inside(self, news: int | None, events: list[tuple[int, int]], poll: select.poll) -> None:
        if news is not None and any(descriptor == news for descriptor, _ in events):
            self._inside = _first_inside(news)
            poll.unregister(news)

    def _read(self, streams: list[_Stream], poll: select.poll) -> bool:
        """Take what is there; False once a bound is passed."""
        for stream in streams:
            was_open = stream.open
            if was_open and not stream.read():
                return False
            if was_open and not stream.open:
                poll.unregister(stream.descriptor)
        out, err, channel = streams
        if self._started is None and channel.data.startswith(self._ready):
            self._started = time.monotonic()
        return len(out.data) + len(err.data) <= self._limits.output_bytes

    def _late(self, now: float, began: float) -> bool:
        if self._started is None:
            if now - began > _START_S:
                raise SandboxError(f"the sandbox did not start within {_START_S:.0f} s")
            return False
        return now - self._started > self._limits.wall_s

    def _folder_fits(self, pid: int) -> bool:
        entries, held = usage(self._folder, self._limits.num_files)
        if entries > self._limits.num_files or held > self._limits.folder_bytes:
            return False
        left = self._limits.folder_bytes - held
        return nameless(pid, self._folder, left) <= left


@contextlib.contextmanager
def _read_only(content: bytes) -> Iterator[int]:
    """A descriptor at the start of these bytes; in memory, and closed to writing, where the system can."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            yield file.fileno()
        return
    descriptor = os.memfd_create("request", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
        )
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _exit_descriptor(pid: int) -> Iterator[int | None]:
    """A descriptor that is readable once the process is over; None where the system has none, and ticks must do."""
    if not hasattr(os, "pidfd_open"):
        yield None
        return
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_over(pid: int) -> bool:
    """Whether it has ended; it is not reaped yet, so its number is still its own."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(pid: int, inner: int | None) -> None:
    """End the process and its group, and what bubblewrap put into a process namespace; it is gone on return."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if inner is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(inner, signal.SIGKILL)
        if not select.select([inner], [], [], _DEATH_S)[0]:
            raise SandboxError(f"a sandboxed process is still there {_DEATH_S:.0f} s after it was killed")
    finally:
        os.close(inner)


def _first_inside(news: int) -> int | None:
    """A descriptor of the first process bubblewrap made, once it tells of it; that process waits until it has."""
    try:
        told = re.search(rb'"child-pid": (\d+)', os.read(news, _CHUNK))
        return os.pidfd_open(int(told[1])) if told else None
    except (BlockingIOError, ProcessLookupError):
        return None
