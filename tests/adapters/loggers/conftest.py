"""What the trackers' tests stand on: a run, a server that refuses, a migrated MLflow database, a real MLflow server."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from crucible_train.ports import RunInfo
from tests.adapters.loggers.wandb_stub import WandbStub


def make_run_info(folder: Path, name: str = "run", **changes) -> RunInfo:
    run_dir = folder / "runs" / name
    run_dir.mkdir(parents=True, exist_ok=True)
    given = {"tracker_id": f"{name}-0123abcd", "tags": ["short"], "group": "sweep", "notes": "a *remark*"} | changes
    return RunInfo(name, run_dir, {"seed": 0}, 16, 0, **given)


@pytest.fixture
def run_info(tmp_path) -> Callable[..., RunInfo]:
    """Makes what a logger is told of a run, by name."""
    return lambda name="run", **changes: make_run_info(tmp_path, name, **changes)


def sync_offline(run: RunInfo) -> None:
    """Have W&B's own command send what a run left in its offline folder."""
    (folder,) = run.run_dir.parent.glob(f"wandb/offline-run-*-{run.tracker_id}")
    env = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    done = subprocess.run(command, env=env, cwd=run.run_dir, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def service(monkeypatch) -> Iterator[WandbStub]:
    """A W&B service on this machine, which the library is told of."""
    import wandb

    wandb.teardown()  # an earlier test may have left the library offline
    stub = WandbStub()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", stub.address)
    yield stub
    wandb.teardown()
    stub.stop()


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with one status."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.server.status)
        if self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = do_PUT = do_PATCH = answer

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[Callable[[int, str], str]]:
    """Starts a server that answers with a status and a Retry-After; gives its address."""
    servers = []

    def start(status: int, retry_after: str = "") -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
        server.status, server.retry_after = status, retry_after
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def mlflow_database(tmp_path, migrated_database, monkeypatch) -> str:
    """Where the logger finds its database when it is told nothing; the address to read it at."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "runs" / "mlflow.db"
    path.parent.mkdir()
    shutil.copyfile(migrated_database, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory, migrated_database) -> Iterator[str]:
    """The address of a real MLflow server."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copyfile(migrated_database, folder / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        server = subprocess.Popen([*command, "--workers", "1"], stdout=log, stderr=log, env=env, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 300
    while True:
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                break
        except httpx.TransportError:
            pass
        is_coming = server.poll() is None and time.monotonic() < end
        assert is_coming, (folder / "log").read_text()
        time.sleep(0.1)
    yield address
    os.killpg(server.pid, 15)
    server.wait(30)
