"""Runs that are killed for good: real processes, real SIGKILL, a world small enough to do it a few hundred times."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crucible_train import checkpoints

ZYGOTE = Path(__file__).parent / "zygote.py"
KILLED = -9


@dataclass
class Ended:
    """How a process ended: its exit code, and what it answered if it lived to."""

    exit_code: int
    answer: dict[str, Any]

    @property
    def was_killed(self) -> bool:
        return self.exit_code == KILLED

    @property
    def reports(self) -> str:
        return "\n".join(self.answer["reports"])


@dataclass
class Zygote:
    """Starts processes, one at a time."""

    process: subprocess.Popen[str]
    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def start(self, **task: Any) -> tuple[int, Path]:
        """Begin a task; its pid and where its answer will be."""
        assert self.process.stdin is not None
        answer = self.folder / f"{next(self._numbers)}.json"
        self.process.stdin.write(json.dumps(task | {"answer": str(answer)}, default=str) + "\n")
        self.process.stdin.flush()
        return int(self._line()), answer

    def wait(self, answer: Path) -> Ended:
        """Wait for what ``start`` began."""
        exit_code = int(self._line())
        assert exit_code in (0, KILLED), Path(f"{answer}.log").read_text()
        return Ended(exit_code, json.loads(answer.read_text()) if exit_code == 0 else {"reports": []})

    def run(self, **task: Any) -> Ended:
        return self.wait(self.start(**task)[1])

    def run_injected(self, inject: str, **task: Any) -> Ended:
        """Run a task under strace with one injected fault."""
        pid, answer = self.start(is_traced=True, **task)
        command = ["strace", "-f", "-qq", "-o", f"{answer}.strace", "-p", str(pid), "-e", f"inject={inject}"]
        calls = inject.partition(":")[0]
        with subprocess.Popen([*command, "-e", f"trace={calls}"], stderr=subprocess.PIPE, text=True) as tracer:
            ended = self.wait(answer)
            assert tracer.communicate(timeout=20)[1] == ""
        return ended

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the zygote is gone"
        return line


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    command = [sys.executable, "-B", str(ZYGOTE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Zygote(process, tmp_path_factory.mktemp("answers"))
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="session")
def can_trace(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where there is no strace, or a process may not be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    permitted = subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, check=False)
    if permitted.returncode != 0:
        pytest.skip("processes may not be traced here")


@dataclass
class World:
    """A model and its data, and the runs made of them."""

    zygote: Zygote
    path: Path

    def train(self, run_dir: Path, **task: Any) -> Ended:
        return self.zygote.run(do="train", world=self.path, run_dir=run_dir, **task)


@pytest.fixture(scope="session")
def world(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("world")
    assert zygote.run(do="make_world", path=path).exit_code == 0
    return World(zygote, path)


def outcome_of(run_dir: Path) -> dict[str, Any]:
    """What two runs must have in common: metrics, and the digests of all files of the last checkpoint."""
    folder = checkpoints.CheckpointFolder(run_dir)
    last = folder.path / checkpoints.checkpoint_name(folder.steps()[-1])
    assert not list(run_dir.rglob(".tmp-*"))
    return {
        "sha256": checkpoints.verify(last),
        "manifest": (last / checkpoints.MANIFEST).read_text(),
        "metrics": (run_dir / "metrics.jsonl").read_bytes(),
        "index": (run_dir / "checkpoints.jsonl").read_text(),
    }


@pytest.fixture(scope="session")
def outcome() -> Any:
    return outcome_of
