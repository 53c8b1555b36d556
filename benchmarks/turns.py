"""Programs side by side of which one runs while the others stand still, so that a machine's drift strikes all alike."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


class Job:
    """A program and whatever it has started. Its clock is that of the machine less the time it stood still."""

    def __init__(self, process: "subprocess.Popen[str]", mark: str, others: Sequence[int] = ()) -> None:
        """Take charge of a program.

        Args:
            process: the program, as it has just been started.
            mark: a text that stands in the command line of all that belong to it, and of nothing else.
            others: process groups that belong to it besides.
        """
        self.process = process
        self._mark, self._others = mark.encode(), tuple(others)
        self._stood: list[tuple[float, float]] = []
        self._since: float | None = None
        self._still: Sequence[int] = ()

    def stop(self) -> None:
        """Let it stand still."""
        _signal(signal.SIGSTOP, [self.process.pid])  # the rest has yet to be found, which takes some milliseconds
        self._since = time.monotonic()
        self._still = self._pids()
        _signal(signal.SIGSTOP, self._still, self._others)

    def go_on(self) -> None:
        """Let it run."""
        if self._since is not None:
            self._stood.append((self._since, time.monotonic()))
            self._since = None
            _signal(signal.SIGCONT, self._still, self._others)

    def seconds(self, began: float, ended: float) -> float:
        """What ran between two readings of ``time.monotonic``, in this process or another of the machine."""
        stood = sum(max(0.0, min(ended, end) - max(began, start)) for start, end in self._stood)
        return ended - began - stood

    def end(self) -> None:
        """Kill it and all that it has left; the other groups go on."""
        self.go_on()
        _signal(signal.SIGKILL, self._pids())
        self.process.wait()

    def _pids(self) -> Sequence[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if self._mark in path.read_bytes():
                    found.append(int(path.parent.name))
        return found


def _signal(number: signal.Signals, pids: Sequence[int], groups: Sequence[int] = ()) -> None:
    for send, targets in ((os.kill, pids), (os.killpg, groups)):
        for target in targets:
            with contextlib.suppress(ProcessLookupError):
                send(target, number)


def take(jobs: Sequence[Job], turn_s: float = 1.0) -> None:
    """Let every program run to its end, in turns; the last one has the machine to itself."""
    for job in jobs:
        job.stop()
    while running := [job for job in jobs if job.process.poll() is None]:
        for job in running:
            job.go_on()
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(turn_s if len(running) > 1 else None)
            job.stop()
