"""The temporary Prefect server itself. Run by ``prefect_server.TemporaryServer``, as a file of its own."""

import contextlib
import gc
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import threading
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("prefect_schema.sql")
_FLOW_RUN = re.compile(r"/api/flow_runs/[0-9a-f-]{36}")
_UNFINISHED = {"PENDING", "RUNNING", "CANCELLING"}
_LOOK_EVERY_S = 0.2
_LAST_WORDS_S = 3.0


class Server:
    """A lean Prefect server on a free port of this machine, tied to the process that started it."""

    def __init__(self) -> None:
        """Take a port and tell the parent."""
        self._parent = os.getppid()
        self._pipe = os.dup(1)
        os.dup2(2, 1)  # whatever prints to standard output must not reach the parent's ear
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._flow_runs: set[str] = set()
        self._server: Any = None
        self._say(f"port {self._port}")

    def run(self) -> None:
        """Serve until the parent is done."""
        threading.Thread(target=self._watch, daemon=True).start()
        gc.disable()  # nothing made while importing is garbage: 0.4 s of 2.9
        import uvicorn  # noqa: PLC0415 - the port is told, and the parent watched, before the long imports
        from prefect.settings import get_current_settings  # noqa: PLC0415

        install_schema(get_current_settings().server.database.connection_url.get_secret_value())  # type: ignore[union-attr]
        from prefect.server.api.server import create_app  # noqa: PLC0415

        config = uvicorn.Config(
            self._around(create_app()), log_level="error", lifespan="on", timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext  # the parent decides when to end
        startup = self._server.startup

        async def startup_and_tell(sockets: Any = None) -> None:
            await startup(sockets=sockets)
            gc.enable()
            gc.freeze()
            if self._server.started:
                self._say("ready")
                # the first request builds the routes (0.25 s): make it while the parent still imports
                threading.Thread(target=self._request, args=("GET", "/api/admin/version"), daemon=True).start()

        self._server.startup = startup_and_tell
        self._server.run(sockets=[self._listener])

    @property
    def _port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._pipe, f"{text}\n".encode())

    def _around(self, app: Any) -> Any:
        """The app, noting which flow runs it hears of.

        Where SQLite is locked, Prefect answers 503 and its client waits two seconds or more; it is told that 0.05 s do.
        """

        async def application(scope: Any, receive: Any, send: Any) -> None:
            async def answer(message: Any) -> None:
                if message["type"] == "http.response.start" and message["status"] == 503:
                    message["headers"] = [*message["headers"], (b"retry-after", b"0.05")]
                await send(message)

            if found := _FLOW_RUN.match(scope.get("path", "")):
                self._flow_runs.add(found.group())
            await app(scope, receive, answer if scope["type"] == "http" else send)

        return application

    def _watch(self) -> None:
        """End when the parent ends its pipe, or is gone (a forked worker of it may still hold the pipe)."""
        words = bytearray()

        def read() -> None:
            with contextlib.suppress(OSError):
                while part := os.read(0, 64):
                    words.extend(part)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while reader.is_alive() and os.getppid() == self._parent:
            reader.join(_LOOK_EVERY_S)
        if self._server is None or not self._server.started:
            os._exit(0)
        if b"bye" not in words:
            threading.Timer(_LAST_WORDS_S, os._exit, (1,)).start()
        with contextlib.suppress(OSError, ValueError, KeyError):
            self._end_flow_runs()
        self._server.should_exit = True

    def _end_flow_runs(self) -> None:
        """Runs whose command was killed would be shown as running for ever."""
        for flow_run in list(self._flow_runs):
            if self._request("GET", flow_run)["state_type"] in _UNFINISHED:
                state = {"type": "CRASHED", "message": "the command was killed"}
                self._request("POST", f"{flow_run}/set_state", {"state": state, "force": True})

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer


def install_schema(url: str) -> None:
    """Start a new SQLite file from the schema that Prefect's own migrations end with: 0.03 s instead of 7.

    A later Prefect runs the migrations that came after it. ``benchmarks/prefect_schema.py`` makes the file.
    """
    scheme, _, place = url.partition(":///")
    path = Path(place)
    if scheme != "sqlite+aiosqlite" or not place or ":memory:" in place or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.new")
    with contextlib.closing(sqlite3.connect(half)) as database:
        database.executescript("PRAGMA journal_mode = WAL;" + SCHEMA.read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        os.link(half, path)  # refuses to replace: another command may have been first
    half.unlink()


def main() -> None:
    """Serve; a signal to the whole process group is the parent's to answer."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    Server().run()
    os._exit(0)


if __name__ == "__main__":
    main()
