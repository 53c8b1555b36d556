"""One finished run that many tests read, a Prefect server, and ways to run the flow in a process of its own or here."""

import asyncio
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]

# before Prefect is imported here
os.environ |= {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


@dataclass(frozen=True)
class Workplace:
    """A folder to run in, the words of a run there, and the program they are said to, as in ``flows.command``."""

    folder: Path
    words: tuple[str, ...]
    program: str = "SFT"

    @property
    def run_dir(self) -> Path:
        """The only run folder."""
        (found,) = (self.folder / "runs").iterdir()
        return found

    def copy(self, folder: Path, *stages: str) -> "Workplace":
        """No runs, and the same cache but for these stages."""
        shutil.copytree(self.folder / "cache", folder / "cache")
        for stage in stages:
            shutil.rmtree(folder / "cache" / "manifests" / stage)
        return Workplace(folder, self.words, self.program)

    def config(self, *changes: str) -> Any:
        """The configuration of the words; its places are relative to the folder."""
        from crucible_train.config.command import parse_command
        from flows import command

        config_type = pkgutil.resolve_name(getattr(command, self.program).config_type)
        return parse_command(config_type, [*self.words, *changes], self.program).config


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


class Running:
    """``python -m flows.sft``, or another flow's module, in a process group of its own."""

    def __init__(
        self, folder: Path, words: tuple[str, ...], environment: dict[str, str], module: str = "flows.sft"
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._seen = ""

    def wait_for(self, text: str) -> None:
        """Read the output up to a line that holds ``text``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._seen += line
            if text in line:
                return
        pytest.fail(f"no line holds {text!r}:\n{self._seen}\n{self.process.communicate()[1]}")

    def family(self) -> set[int]:
        """The living processes of the group, and children with a group of their own, such as a temporary server."""
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            state, parent, group = fields[0], int(fields[1]), int(fields[2])
            if state != "Z" and self.process.pid in (group, parent):
                found.add(int(path.name))
        return found

    def signal(self, number: int) -> None:
        """As a terminal sends it: to the whole group."""
        os.killpg(self.process.pid, number)

    def end(self) -> Ended:
        """Wait for the end."""
        try:
            out, err = self.process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return Ended(self.process.returncode, self._seen + out, err)


def _words(model: Path, rows: Path) -> tuple[str, ...]:
    return (
        f"model={model}",
        f"dataset={rows}",
        "cache_dir=cache",
        "report_to=[console]",
        "data.eval_split=0.25",
        "train.learning_rate=1e-3",
        "train.max_steps=16",
        "train.per_device_train_batch_size=4",
        "train.gradient_accumulation_steps=4",
        "eval.num_samples=2",
        "eval.max_new_tokens=8",
        "engine.precision=float32",
        "engine.num_threads=1",
    )


def write_rows(path: Path, num: int = 24) -> Path:
    """Short conversations as JSON lines."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} plus {i + 1}?"},
                {"role": "assistant", "content": f"{i} + {i + 1} = {2 * i + 1}\n#### {2 * i + 1}"},
            ]
        }
        for i in range(num)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="session")
def words(tiny_model: Path, rows: Path) -> tuple[str, ...]:
    return _words(tiny_model, rows)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, rows: Path) -> tuple[Workplace, Ended]:
    """The first run, with a temporary server of its own; one for all workers of pytest-xdist. Not to be changed."""

    def prepare(place: Path) -> tuple[str, ...]:
        return _words(shutil.copytree(tiny_model, place / tiny_model.name), shutil.copy(rows, place / rows.name))

    return run_once(tmp_path_factory, "finished", "SFT", prepare)


def run_once(
    factory: pytest.TempPathFactory, name: str, program: str, prepare: Callable[[Path], tuple[str, ...]]
) -> tuple[Workplace, Ended]:
    """Run a command in a new folder, once for all workers; ``prepare`` fills the folder and gives the words."""
    from flows import command

    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    place, record = shared / name, shared / f"{name}.json"
    with FileLock(shared / f"{name}.lock"):
        if not record.is_file():
            place.mkdir()
            given, module = prepare(place), getattr(command, program).module
            ended = Running(place, given, {"PREFECT_HOME": str(place / "prefect")}, module).end()
            record.write_text(json.dumps([given, ended.__dict__]))
    given, ended_fields = json.loads(record.read_text())
    ended = Ended(**ended_fields)
    assert ended.status == 0, ended.err
    return Workplace(place, tuple(given), program), ended


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a Prefect server that lives as long as the session."""
    from flows.prefect_server import TemporaryServer

    running = TemporaryServer()
    running.wait_until_ready()
    yield running.api_url
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        EventsWorker.drain_all(timeout=5)
        APILogWorker.drain_all(timeout=5)
    running.stop()


@pytest.fixture
def states(server: str) -> Callable[[str], list[str]]:
    """The states of the flow runs of this name, oldest first."""

    def read(run_name: str) -> list[str]:
        request = urllib.request.Request(
            f"{server}/flow_runs/filter", b'{"sort": "START_TIME_ASC"}', {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            runs = json.load(answer)
        return [run["state_name"] for run in runs if run["parameters"]["config"]["run_name"] == run_name]

    return read


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start the command in ``tmp_path``; nothing of it outlives the test."""
    started: list[Running] = []

    def begin(
        words: tuple[str, ...], folder: Path = tmp_path, module: str = "flows.sft", **environment: str
    ) -> Running:
        started.append(Running(folder, words, environment, module))
        return started[-1]

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@dataclass(frozen=True)
class FlowRun:
    """A flow run in this process: its state, what it printed, and how each task ended, in order of their start."""

    state: Any
    id: Any
    printed: str
    tasks: list[tuple[str, str]]


@pytest.fixture
def run_flow(
    server: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Any], FlowRun]]:
    """Run the configuration's flow in this process and in ``tmp_path``, against the session's server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from crucible_train import terminal
    from flows import command

    monkeypatch.chdir(tmp_path)
    programs = [value for value in vars(command).values() if isinstance(value, command.Program)]

    def run(config: Any) -> FlowRun:
        terminal._console = None  # standard output is another in every test
        (entry,) = (one.entry for one in programs if isinstance(config, pkgutil.resolve_name(one.config_type)))
        flow = pkgutil.resolve_name(entry)
        state = asyncio.run(_state(flow, config))
        flow_run_id = state.state_details.flow_run_id
        return FlowRun(state, flow_run_id, capsys.readouterr().out, asyncio.run(_task_runs(flow_run_id)))

    with temporary_settings({PREFECT_API_URL: server}):
        yield run


async def _state(flow: Any, config: Any) -> Any:
    return await flow(config, return_state=True)


async def _task_runs(flow_run_id: Any) -> list[tuple[str, str]]:
    """Names and state names. The server learns of them by events, so a moment after the flow."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    async with get_client() as client:
        for _ in range(600):
            found = await client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
                sort=TaskRunSort.EXPECTED_START_TIME_ASC,
            )
            if found and all(run.state is not None and run.state.is_final() for run in found):
                break
            await asyncio.sleep(0.1)
    found.sort(key=lambda run: run.start_time)
    return [(run.name, run.state.name) for run in found]
