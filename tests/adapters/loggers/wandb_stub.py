"""A W&B service on this machine: as much of its API as the official client needs to log and resume a run."""

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")


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
        operations: the names of the GraphQL operations that were asked.
        unknown: operations that have no answer here.
        refuse_history: a status for every ``file_stream`` request; 0 to take them.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, StoredRun] = {}
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.refuse_history = 0
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
        self.unknown.append(operation)
        return None

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
                operation = _OPERATION.search(sent["query"])[1]
                server.operations.append(operation)
                data = server.answer(operation, sent.get("variables") or {})
                self.say({"data": data} if data is not None else {"errors": [{"message": f"no {operation} here"}]})
            elif self.path.endswith("/file_stream"):
                if server.refuse_history:
                    self.say({}, server.refuse_history)
                    return
                server.take_stream(self.path.split("/")[-2], sent)
                self.say({})
            else:
                self.say({}, 404)

    def do_PUT(self) -> None:
        data = self.body()
        _, _, name, file = self.path.split("/", 3)
        with self.server.lock:
            self.server.runs[name].uploads[file] = data
        self.say({})

    def do_GET(self) -> None:
        self.say({}, 404)

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def say(self, answer: dict, status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass
