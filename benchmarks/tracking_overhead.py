"""What a tracker costs a training by the clock: MLflow as it should be, and in every way that it fails.

    python -m benchmarks.tracking_overhead [--rounds 3] [--steps 300] [--sides healthy absent ...]

Every run is the same small supervised fine-tuning, in a fresh process, its follower beside it on the same cores. Equal
runs differ by more than is asked about here, so what a follower costs is found within a run: it is stopped and
continued every second (SIGSTOP, SIGCONT), and the steps in which it could run are set against those in which it stood
still. Its start, which is most of what it does beside a tracker that fails, falls whole into the former, so that this
is charged about twice; what it sends once a second is charged once. What the loggers take in the process that trains is
measured there. A side's cost is both together.

One MLflow server runs all the time, on the same cores as well but at the lowest priority, since it stands for one
elsewhere; between it and the run is this program:

- none: no tracker, which shows how far equal halves of a run come apart;
- healthy: nothing; absent: nobody listens; dies: after twelve requests nobody listens any more;
- refuses: 429 and 500 in turn; hangs: takes connections and never answers;
- disk_full: a SQLite file on a full disk (a mounted tmpfs, which needs root; left out where that is not allowed).

Recorded as ``results/tracking_overhead.json``.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import child, record

MODEL = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NUM_ROWS = 512
NONE = "none"
_AT_LOWEST_PRIORITY = """
import os, sys
from crucible_train.tracking.command import give_way
give_way()
os.execv(sys.argv[1], sys.argv[1:])
"""
_FREE_BYTES = 2**19
_STRETCH_S = 1.0
_WARM_UP_STEPS = 3
_START_S = 180.0
Environment = Mapping[str, str]


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server does not outlive it
    with tempfile.TemporaryDirectory(prefix="tracking-overhead-") as name, ExitStack() as closing:
        folder = Path(name)
        workload = _prepared(folder, arguments)
        server = closing.enter_context(_mlflow_server(folder))
        sides = _sides(folder, server.address)
        rounds: list[dict[str, Any]] = []
        for turn in range(arguments.rounds):
            for side in arguments.sides:
                run_dir = folder / "runs" / f"{turn}-{side}"
                one = _measured(
                    side, sides[side], workload, run_dir, server.group, is_first=bool(turn % 2), of=arguments
                )
                if one is not None:
                    rounds.append(one)
                    print(f"  {side:<10}{one['cost']:>+8.1%}   {one['steps']}   load {one['load_average']}", flush=True)
        summary = _summary(rounds)
        path = record.write(
            "tracking_overhead",
            config={
                "model": MODEL,
                "num_rows": NUM_ROWS,
                "steps": arguments.steps,
                "num_threads": arguments.threads,
                "mlflow": version("mlflow"),
                "sides": arguments.sides,
            },
            rounds=rounds,
            summary=summary,
            pythons={"ours": Path(sys.executable)},
        )
    for side, cost in summary["cost"].items():
        print(f"{side:<10}{cost['median']:>+8.1%}   ({cost['least']:+.1%} to {cost['most']:+.1%})")
    print(f"written: {path.relative_to(record.ROOT)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the engine")
    known = list(_sides(Path(), ""))
    parser.add_argument("--sides", nargs="+", choices=known, default=known)
    return parser.parse_args()


def _prepared(folder: Path, arguments: argparse.Namespace) -> Path:
    """The file that every side reads, and the model and rows that it names."""
    config = {
        "model": str(folder / "model"),
        "dataset": str(folder / "rows.jsonl"),
        "output_dir": str(folder / "runs"),
        "cache_dir": str(folder / "cache"),
        "data": {"eval_split": 0.0},
        "train": {
            "max_steps": arguments.steps,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-3,
        },
        "checkpoint": {"save_steps": arguments.steps},
        "engine": {"precision": "float32", "num_threads": arguments.threads, "device": "cpu"},
    }
    path = folder / "workload.json"
    path.write_text(json.dumps({"config": config, "model": MODEL, "num_rows": NUM_ROWS}), encoding="utf-8")
    child.run(sys.executable, "benchmarks.tracking_side", path, {"prepare": True}, arguments.threads)
    return path


def _measured(
    side: str,
    surroundings: Callable[[], AbstractContextManager[Environment | None]],
    workload: Path,
    run_dir: Path,
    server_group: int,
    *,
    is_first: bool,
    of: argparse.Namespace,
) -> dict[str, Any] | None:
    """One run of a side; None where the machine does not allow it. ``is_first``: the follower runs in even seconds."""
    with surroundings() as environment, tempfile.TemporaryFile("w+") as output:
        if environment is None:
            print(f"  {side:<10}left out: mounting is not allowed here", flush=True)
            return None
        load = record.load_average()
        options = {"report_to": ["mlflow"] if environment else [], "run_dir": str(run_dir)}
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.tracking_side", workload, json.dumps(options)],
            stdout=output,
            cwd=record.ROOT,
            env={**child.environment(of.threads), **environment},
        )
        try:
            stretches = _stopping(process, str(run_dir), server_group, is_first=is_first)
        finally:
            process.kill()
            os.killpg(server_group, signal.SIGCONT)
            _signal(signal.SIGKILL, _followers(str(run_dir), process.pid))
        if process.returncode != 0:
            sys.exit(f"the run of {side} ended with status {process.returncode}")
        output.seek(0)
        told = json.loads(output.read().strip().splitlines()[-1])
    logged_at = told["logged_at"][_WARM_UP_STEPS:]
    steps = {
        name: round(fmean(_within(logged_at, [one for one in stretches if one.is_running == is_running])), 5)
        for name, is_running in (("beside_it_s", True), ("without_s", False))
    }
    cursor = run_dir / "tracking" / "mlflow.json"
    state = json.loads(cursor.read_text(encoding="utf-8")) if cursor.is_file() else {}
    logging = told["logging_s"] / (logged_at[-1] - logged_at[0])
    return {
        "side": side,
        "load_average": load,
        "steps": steps,
        "logging_s": told["logging_s"],
        "cost": round(steps["beside_it_s"] / steps["without_s"] - 1 + logging, 4),
        "tracker_state": state.get("state"),
        "sent_to_step": state.get("last_step"),
    }


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A time, by the machine's monotonic clock, in which the follower runs or stands still."""

    start: float
    end: float
    is_running: bool


def _stopping(process: "subprocess.Popen[bytes]", mark: str, server_group: int, *, is_first: bool) -> list[_Stretch]:
    """Stop and continue a run's followers, and the server, until the run has ended; when they ran and stood."""
    stretches, is_running = [], is_first
    while process.poll() is None:
        number = signal.SIGCONT if is_running else signal.SIGSTOP
        _signal(number, _followers(mark, process.pid))
        os.killpg(server_group, number)
        start = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STRETCH_S)
        stretches.append(_Stretch(start, time.monotonic(), is_running))
        is_running = not is_running
    return stretches


def _within(logged_at: Sequence[float], stretches: Sequence[_Stretch]) -> list[float]:
    """Seconds of each step that began and ended within one stretch."""
    steps = list(pairwise(logged_at))
    return [end - start for start, end in steps if any(one.start <= start and end <= one.end for one in stretches)]


def _followers(mark: str, trainer: int) -> Sequence[int]:
    """The processes of a run, by what stands in their command line, but for the one that trains."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes() and int(path.parent.name) != trainer:
                found.append(int(path.parent.name))
    return found


def _signal(number: signal.Signals, pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    costs: dict[str, list[float]] = {}
    for one in rounds:
        costs.setdefault(one["side"], []).append(one["cost"])
    return {
        "cost": {
            side: {"median": round(median(found), 4), "least": min(found), "most": max(found)}
            for side, found in costs.items()
        }
    }


def _sides(folder: Path, server: str) -> dict[str, Callable[[], AbstractContextManager[Environment | None]]]:
    """What surrounds a run of each side: the environment that its followers find."""
    return {
        NONE: lambda: contextlib.nullcontext({}),
        "healthy": lambda: contextlib.nullcontext({"MLFLOW_TRACKING_URI": server}),
        "absent": lambda: contextlib.nullcontext({"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{_free_port()}"}),
        "dies": lambda: _dying(server),
        "refuses": lambda: _answering(_Refusing),
        "hangs": lambda: _answering(_Hanging),
        "disk_full": lambda: _full_disk(folder),
    }


@dataclass(frozen=True, slots=True)
class _Server:
    address: str
    group: int


@contextmanager
def _mlflow_server(folder: Path) -> "Iterator[_Server]":
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("w") as log:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        process = subprocess.Popen(
            [sys.executable, "-c", _AT_LOWEST_PRIORITY, *command],
            stdout=log,
            stderr=log,
            env=environment,
            process_group=0,
        )
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
                if reply.status == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the MLflow server does not start:\n{(folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield _Server(address, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _dying(server: str, num_requests: int = 12) -> Iterator[Environment]:
    """Passes requests on to the server; after some of them everything that is open is cut, and nobody listens."""
    with _answering(_passing(server, num_requests)) as environment:
        yield environment


class _Quiet(BaseHTTPRequestHandler):
    """Answers every method alike."""

    def answer(self) -> None:
        """To be said by those below."""
        raise NotImplementedError

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = lambda self: self.answer()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def say(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        """What was sent."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


class _Refusing(_Quiet):
    _num = 0

    def answer(self) -> None:
        self.body()
        type(self)._num += 1
        self.say(429 if self._num % 2 else 500)


class _Hanging(_Quiet):
    def answer(self) -> None:
        time.sleep(3600)


def _passing(server: str, num_requests: int) -> type[_Quiet]:
    class Passing(_Quiet):
        num = 0

        def answer(self) -> None:
            sent = self.body()
            type(self).num += 1
            if self.num > num_requests:
                if self.num == num_requests + 1:  # from here on nobody listens
                    threading.Thread(target=self.server.shutdown, daemon=True).start()
                    self.server.socket.close()
                self.connection.close()
                return
            headers = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
            request = urllib.request.Request(server + self.path, sent or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=20) as reply:
                    self.say(reply.status, reply.read(), Content_Type="application/json")
            except urllib.error.HTTPError as error:
                self.say(error.code, error.read(), Content_Type="application/json")

    return Passing


@contextmanager
def _answering(handler: type[_Quiet]) -> Iterator[Environment]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    try:
        yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_address[1]}"}
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _full_disk(folder: Path) -> Iterator[Environment | None]:
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    size = (folder / "mlflow.db").stat().st_size + _FREE_BYTES
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        shutil.copyfile(folder / "mlflow.db", disk / "mlflow.db")
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(b"\0" * 4096):
                pass
        yield {"MLFLOW_TRACKING_URI": f"sqlite:///{disk / 'mlflow.db'}"}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


if __name__ == "__main__":
    main()
