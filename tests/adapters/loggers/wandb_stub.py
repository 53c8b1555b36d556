"""A W&B service on this machine: as much of its API as the official client needs to log and resume a run."""

import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from tests.adapters.loggers.wandb_artifact_store import ArtifactStore

_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")


@contextmanager
def impatient() -> Iterator[None]:
    """Nothing that is asked of the service is waited for longer than a second."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("_INIT_TIMEOUT_S", "_FINISH_TIMEOUT_S"):
            patch.setattr(f"crucible_train.adapters.loggers.wandb_runs.{limit}", 1.0)
        yield


@dataclass
class StoredRun:
    """What arrived for one run.

    Attributes:
        history: lines as they were sent, by the offset the client gave them: a line sent again takes its own place.
        lines: every line in the order it arrived, repeated ones too.
        summary: the newest one.
        config: the newest one.
        exit_codes: one for each time the client said that the run is complete.
        uploads: files, by name.
    """

    history: dict[int, dict] = field(default_factory=dict)
    lines: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)


class WandbStub(ThreadingHTTPServer):
    """Listens on a free port of the loopback.

    Attributes:
        runs: by id, in the order they came.
        artifacts: what was logged and used.
        operations: the names of the GraphQL operations that were asked.
        unknown: operations that have no answer here, and what does not fit together.
        refuse: the status and the Retry-After that an operation is answered with, by its name; ``graphql`` for all of
            them, ``file_stream`` and ``upload`` for the other requests.
        requested: when each of them came, by the monotonic clock, refused ones too.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, StoredRun] = {}
        self.artifacts = ArtifactStore(self.address)
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        self.requested: list[tuple[float, str]] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def answer(self, operation: str, asked: dict) -> dict | None:
        """The data of a GraphQL answer; None where there is none."""
        name, project = asked.get("name"), asked.get("project") or "crucible-train"
        of_project = {"id": "p", "name": project, "entity": {"id": "e", "name": "tester"}}
        match operation:
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "Viewer":
                return {
                    "viewer": {
                        "id": "u",
                        "entity": "tester",
                        "username": "tester",
                        "flags": "{}",
                        "teams": {"edges": []},
                    }
                }
            case "RunResumeStatus":
                run = self.runs.get(name)
                return {"model": {**of_project, "bucket": None if run is None else self._bucket(name, run)}}
            case "UpsertBucket":
                is_new = name not in self.runs
                run = self.runs.setdefault(name, StoredRun())
                if asked.get("config"):
                    run.config = json.loads(asked["config"])
                bucket = {**self._bucket(name, run), "project": of_project, "historyLineCount": len(run.history)}
                return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}
            case "CreateRunFiles":
                files = [
                    {"name": file, "uploadUrl": f"{self.address}/upload/{asked['run']}/{file}"}
                    for file in asked["files"]
                ]
                return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}
        try:
            found = self.artifacts.answer(operation, asked, of_project)
        except (AssertionError, LookupError, ValueError) as error:
            operation, found = f"{operation}: {error!r}", None
        if found is None:
            self.unknown.append(operation)
        return found

    def _bucket(self, name: str, run: StoredRun) -> dict:
        tail = [json.dumps(run.history[at]) for at in sorted(run.history)[-1:]]
        internal = run.config.get("_wandb", {}).get("value", {})
        return {
            "id": f"id-{name}",
            "name": name,
            "displayName": name,
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "tags": [],
            "sweepName": None,
            # The client takes a run without this key as one that never began, and resumes nothing.
            "wandbConfig": json.dumps({"t": internal["t"]} if "t" in internal else {}),
        }

    def take_stream(self, name: str, sent: dict) -> None:
        """A ``file_stream`` request."""
        run = self.runs[name]
        for file, chunk in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]]
            if file == "wandb-history.jsonl":
                run.history.update(enumerate(lines, chunk["offset"]))
                run.lines += lines
            elif file == "wandb-summary.json":
                run.summary = lines[-1]
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        sent = json.loads(self.body())
        server = self.server
        with server.lock:
            if self.path.endswith("/graphql"):
                named = _OPERATION.search(sent.get("query", ""))
                operation = named[1] if named else "graphql"
                server.operations.append(operation)
                if self.is_refused(operation):
                    return
                data = server.answer(operation, sent.get("variables") or {})
                self.say({"data": data} if data is not None else {"errors": [{"message": f"no {operation} here"}]})
            elif self.path.endswith("/file_stream"):
                if self.is_refused("file_stream"):
                    return
                server.take_stream(self.path.split("/")[-2], sent)
                self.say({})
            else:
                self.say({}, 404)

    def do_PUT(self) -> None:
        data = self.body()
        _, what, place = unquote(self.path).split("/", 2)
        with self.server.lock:
            if self.is_refused("upload"):
                return
            if what == "artifact":
                try:
                    self.server.artifacts.take(place, data, self.headers.get("Content-Md5", ""))
                except (AssertionError, LookupError, ValueError) as error:
                    self.server.unknown.append(f"{place}: {error!r}")
            else:
                name, _, file = place.partition("/")
                self.server.runs[name].uploads[file] = data
        self.say({})

    def do_GET(self) -> None:
        self.say({}, 404)

    def is_refused(self, what: str) -> bool:
        """Whether a request is not taken, and so is answered already."""
        kind = what if what in ("file_stream", "upload") else "graphql"
        refused = self.server.refuse.get(what) or self.server.refuse.get(kind)
        self.server.requested.append((time.monotonic(), what))  # last: whoever sees it may change what is refused
        if refused is None:
            return False
        status, retry_after = refused
        self.say({"error": "later"}, status, {"Retry-After": retry_after} if retry_after else {})
        return True

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def say(self, answer: dict, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass
