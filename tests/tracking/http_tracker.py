"""A tracker behind HTTP: a real server that keeps what it takes and can misbehave, and the logger that speaks to it."""

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.ports import LoggerUnavailable, Opened

TIMEOUT_S = 2.0


class TrackingServer:
    """Keeps every step it is told of, by run, in order of arrival. ``misbehave`` may answer in its stead."""

    def __init__(self, port: int = 0) -> None:
        self.steps: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.finished: list[str] = []
        self.names: list[str] = []
        self.requested_at: list[float] = []
        self.misbehave: Callable[[BaseHTTPRequestHandler], bool] = lambda _: False
        self._server: ThreadingHTTPServer | None = None
        self.port = port

    def start(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_POST(self) -> None:
                owner.requested_at.append(time.monotonic())
                self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not owner.misbehave(self):
                    answer(self, 200, owner.take(self.path, self.body))

            def log_message(self, *_: Any) -> None: ...

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def take(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        run, steps = body["run"], self.steps.setdefault(body["run"], [])
        if path == "/start":
            self.names.append(body["name"])
        elif path == "/steps":
            steps += [(step, metrics) for step, metrics in body["steps"]]
        elif path == "/event":
            self.events.setdefault(run, []).append(body["event"])
        elif path == "/finish":
            self.finished.append(body["status"])
        return {"last_step": steps[-1][0] if steps else -1}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def only(self) -> list[tuple[int, dict[str, float]]]:
        """The steps of the one run there is."""
        (steps,) = self.steps.values()
        return steps


def answer(handler: BaseHTTPRequestHandler, status: int, body: Any = None, **headers: str) -> None:
    """Send an answer; header names with ``_`` for ``-``."""
    text = json.dumps(body or {}).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text)


def _told(artifact: Any) -> dict[str, Any]:
    told = {name: getattr(artifact, name) for name in ("name", "digest", "is_input", "facts")}
    return {"kind": "artifact", "of": artifact.kind, **told}


class HttpTracker(QuietLogger):
    """The client: batches steps, one request a flush. Where the server is it learns from HTTP_TRACKER_URL."""

    def __init__(self) -> None:
        self._steps: list[Any] = []
        self._run = ""

    def start(self, run: Any) -> Opened:
        self._run = run.tracker_id
        opened = self._ask("/start", name=run.name)
        return Opened(f"{os.environ['HTTP_TRACKER_URL']}/{run.tracker_id}", opened["last_step"])

    def log_metrics(self, metrics: Any, step: int) -> None:
        self._steps.append((step, dict(metrics)))

    def log_hparams(self, values: Any) -> None:
        self._ask("/event", event={"kind": "hparams", "values": dict(values)})

    def log_text(self, name: str, text: str, step: int) -> None:
        self._ask("/event", event={"kind": "text", "name": name, "text": text, "step": step})

    def log_table(self, name: str, columns: Any, rows: Any, step: int) -> None:
        self._ask("/event", event={"kind": "table", "name": name, "rows": rows, "step": step})

    def log_artifact(self, artifact: Any) -> None:
        self._ask("/event", event=_told(artifact))

    def link(self, name: str, url: str) -> None:
        self._ask("/event", event={"kind": "link", "name": f"link/{name}", "url": url})

    def flush(self) -> None:
        if self._steps:
            self._ask("/steps", steps=self._steps)
            self._steps = []

    def finish(self, status: str) -> None:
        self.flush()
        self._ask("/finish", status=status)

    def _ask(self, path: str, **values: Any) -> Any:
        request = urllib.request.Request(
            os.environ["HTTP_TRACKER_URL"] + path,
            json.dumps({"run": self._run, **values}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code != 429 and error.code < 500:
                raise
            wish = error.headers.get("Retry-After")
            raise LoggerUnavailable(f"status {error.code}", float(wish) if wish else None) from error
        except OSError as error:
            raise LoggerUnavailable(f"no answer: {error}") from error
