"""What a tracker costs a run by the clock: none beside MLflow as it should be, and in every way that it fails.

    python -m benchmarks.tracking_overhead [--rounds 3] [--steps 150] [--sides healthy absent ...]

Every run is the same small supervised fine-tuning, in a fresh process, with ``report_to`` empty or ``mlflow``. Counted
is the wall clock from where the loggers are told of the run to the end of the training stage; the follower works
beside it on the same cores. A machine's speed drifts by more than is asked about here, so every run of a side has one
without a tracker beside it, and the two run in turns of a second: while one runs, the other stands still, with its
follower and the server, and its clock does too. One MLflow server runs all the time, on the same cores as well but at
the lowest priority, since it stands for one elsewhere; between it and the run is this program:

- none_again: no tracker here either, which shows how far two equal runs come apart;
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
from pathlib import Path
from statistics import median
from typing import IO, Any

from benchmarks import child, record, turns

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
NONE, AGAIN = "none", "none_again"
_AT_LOWEST_PRIORITY = """
import os, sys
from crucible_train.tracking.command import give_way
give_way()
os.execv(sys.argv[1], sys.argv[1:])
"""
_FREE_BYTES = 2**19
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
                pair = _pair(side, sides[side], workload, folder / "runs" / f"{side}-{turn}", server.group, arguments)
                rounds += pair
                if pair:
                    beside, own = (one["seconds"] for one in pair)
                    print(
                        f"  {side:<10}{own:>8.2f} s   beside it none {beside:>8.2f} s   {own / beside - 1:+.1%}",
                        flush=True,
                    )
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
    for side, ratio in summary["over_none"].items():
        print(
            f"{side:<10} {ratio['median'] - 1:+.1%} over the run without a tracker beside it "
            f"({ratio['least'] - 1:+.1%} to {ratio['most'] - 1:+.1%})"
        )
    print(f"written: {path.relative_to(record.ROOT)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of a run")
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


def _pair(
    side: str,
    surroundings: Callable[[], AbstractContextManager[Environment | None]],
    workload: Path,
    folder: Path,
    server_group: int,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A run without a tracker and one of a side, in turns; nothing where the machine does not allow it."""
    with surroundings() as environment, ExitStack() as closing:
        if environment is None:
            print(f"  {side:<10}left out: mounting is not allowed here", flush=True)
            return []
        load = record.load_average()
        run_dirs = {NONE: folder / "beside", side: folder / side}
        outputs = {name: closing.enter_context(tempfile.TemporaryFile("w+")) for name in run_dirs}
        jobs = {}
        for name, run_dir in run_dirs.items():
            options = {"report_to": [] if name in (NONE, AGAIN) else ["mlflow"], "run_dir": str(run_dir)}
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.tracking_side", workload, json.dumps(options)],
                stdout=outputs[name],
                cwd=record.ROOT,
                env={**child.environment(arguments.threads), **environment},
                text=True,
            )
            jobs[name] = turns.Job(process, str(run_dir), () if name == NONE else (server_group,))
            closing.callback(jobs[name].end)
        turns.take(list(jobs.values()))
        return [_found(name, jobs[name], outputs[name], run_dirs[name], load) for name in jobs]


def _found(name: str, job: turns.Job, output: IO[str], run_dir: Path, load: float) -> dict[str, Any]:
    if job.process.returncode != 0:
        sys.exit(f"the run of {name} ended with status {job.process.returncode}")
    output.seek(0)
    told = json.loads(output.read().strip().splitlines()[-1])
    cursor = run_dir / "tracking" / "mlflow.json"
    state = json.loads(cursor.read_text(encoding="utf-8")) if cursor.is_file() else {}
    return {
        "side": name,
        "load_average": load,
        "seconds": round(job.seconds(told.pop("began"), told.pop("ended")), 3),
        **told,
        "tracker_state": state.get("state"),
        "sent_to_step": state.get("last_step"),
    }


def _summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sides = dict.fromkeys(one["side"] for one in rounds)
    medians = {
        side: record.medians([one for one in rounds if one["side"] == side], ("seconds", "cpu_seconds"))
        for side in sides
    }
    ratios: dict[str, list[float]] = {}
    for beside, one in zip(rounds[::2], rounds[1::2], strict=True):
        ratios.setdefault(one["side"], []).append(round(one["seconds"] / beside["seconds"], 4))
    over_none = {
        side: {"median": round(median(found), 4), "least": min(found), "most": max(found)}
        for side, found in ratios.items()
    }
    return {"medians": medians, "over_none": over_none}


def _sides(folder: Path, server: str) -> dict[str, Callable[[], AbstractContextManager[Environment | None]]]:
    """What surrounds a run of each side: the environment that its followers find."""
    return {
        AGAIN: lambda: contextlib.nullcontext({}),
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
