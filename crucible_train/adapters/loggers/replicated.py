"""The side of experiment tracking that lives in the training process: it writes a journal, and waits for nothing.

A process for each tracker, the follower, reads ``metrics.jsonl`` and the journal and sends what they hold. Whatever a
tracker does, it does it there.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import crucible_train
from crucible_train import files, journal
from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.cursor import Cursor, read_cursor
from crucible_train.ports import Cell, LoggedArtifact, Opened, RunInfo, RunStatus

_COMMAND = ("-m", "crucible_train.tracking", "follow")
_LOOK_EVERY_S = 1.0


class ReplicatedLogger(QuietLogger):
    """Writes down what trackers are to have and starts a follower for each; metrics are in the run's files already."""

    def __init__(
        self,
        trackers: Sequence[str],
        *,
        report: Callable[[str], None],
        start_follower: Callable[[Path, str], object] | None = None,
    ) -> None:
        """Replicate to trackers.

        Args:
            trackers: their names.
            report: is told, in a line each, where a tracker shows the run, and the first thing that keeps it from it.
            start_follower: starts what sends, given the run directory and a name.
        """
        self._trackers = tuple(trackers)
        self._report = report
        self._start_follower = start_follower or _started
        self._watched: list[_Watched] = []
        self._look_at = 0.0
        self._run_dir: Path | None = None
        self._journal: journal.Journal | None = None
        self._copying = ThreadPoolExecutor(1, thread_name_prefix="crucible-pictures")
        self._copies: list[Future[None]] = []

    def start(self, run: RunInfo) -> Opened:
        """Write what the run is and start the followers.

        Raises:
            OSError: the folder cannot be written, or no process started.
        """
        self._run_dir = run.run_dir
        self._journal = journal.Journal(run.run_dir)
        journal.begin(run, self._trackers, "training")
        self._watched = [_Watched(run.run_dir, name) for name in self._trackers]
        for name in self._trackers:
            self._start_follower(run.run_dir, name)
        return Opened()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Report, at most once a second, what followers found out; the numbers are in the run's files."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        for line in (line for watched in self._watched for line in watched.news()):
            with contextlib.suppress(OSError, UnicodeError):  # a terminal that cannot show it stops no tracker
                self._report(line)

    def log_hparams(self, values: Mapping[str, Cell]) -> None:
        """Note the settings."""
        self._noted.add("hparams", values=dict(values))

    def log_text(self, name: str, text: str, step: int) -> None:
        """Note a text."""
        self._noted.add("text", name=name, text=text, step=step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Note a table."""
        self._noted.add("table", name=name, columns=list(columns), rows=[list(row) for row in rows], step=step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Have a picture copied; the copy may be made after the call, so the file must stay until ``flush``."""
        self._copies.append(self._copying.submit(self._noted.add_image, name, path, step))

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Note an artifact."""
        self._noted.add_artifact(artifact)

    def link(self, name: str, url: str) -> None:
        """Note an address."""
        self._noted.add("link", name=name, url=url)

    def flush(self) -> None:
        """Wait for pictures that are being copied."""
        copies, self._copies = self._copies, []
        for copy in copies:
            copy.result()

    def finish(self, status: RunStatus) -> None:
        """Tell the followers that no step will come, or that the run broke off; they go on by themselves."""
        if self._run_dir is not None:
            self.flush()
            journal.set_phase(self._run_dir, "trained" if status == "done" else status)
            self._run_dir = None

    @property
    def _noted(self) -> journal.Journal:
        assert self._journal is not None, "the run has not started"
        return self._journal


class _Watched:
    """A tracker whose follower is heard of: where it shows the run, that it holds it up, that it refuses, once each."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._name, self._path = name, journal.replica_file(run_dir, name, "json")
        self._seen_at = self._written_at()  # what stands there now is of another time
        self._untold = [_address, _delay, _refusal]

    def news(self) -> Iterator[str]:
        """A line for each of them that has come to be known."""
        written_at = self._written_at()
        if not self._untold or written_at == self._seen_at:
            return
        self._seen_at = written_at
        if (cursor := read_cursor(self._path)) is None:
            return
        for describe in tuple(self._untold):
            if text := describe(cursor):
                self._untold.remove(describe)
                yield f"  {self._name}: {text}"

    def _written_at(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0


def _address(cursor: Cursor) -> str:
    """Only of a page: where files are, the end of a run tells, when they are whole."""
    url = cursor.url or ""
    return url if cursor.state == "sending" and url.startswith(("http://", "https://")) else ""


def _delay(cursor: Cursor) -> str:
    goes_on = "the run goes on, and what is not sent now is sent later"
    return f"{cursor.problem}; {goes_on}" if cursor.state == "unavailable" else ""


def _refusal(cursor: Cursor) -> str:
    goes_on = "the run goes on, and python -m crucible_train.tracking sync sends it when this is mended"
    return f"{cursor.problem}; {goes_on}" if cursor.state == "refused" else ""


def start_follower(run_dir: Path, replica: str, *words: str) -> "subprocess.Popen[bytes]":
    """Start the process that sends a run to a tracker. It reads no terminal and writes to ``tracking/REPLICA.log``.

    Raises:
        OSError: no process started.
    """
    log = journal.replica_file(run_dir, replica, "log")
    root = str(Path(crucible_train.__file__).parents[1])
    places = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with files.open_log(log) as output:
        return subprocess.Popen(
            [sys.executable, *_COMMAND, str(run_dir.absolute()), replica, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            process_group=0,  # out of reach of Ctrl-C; Linux weighs processes of other sessions regardless of priority
        )


def _started(run_dir: Path, replica: str) -> None:
    start_follower(run_dir, replica, "--parent", str(os.getpid()))
