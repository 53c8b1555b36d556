"""Canaries: secrets that a run meets, and that services quote at it, are in nothing that it leaves behind or says."""

import base64
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.ports import Opened
from tests.tracking.conftest import cursor

TRACKERS = ("csv", "tensorboard", "trackio", "neptune", "mlflow", "wandb")
QUOTING = "tests.flows.test_no_secret_leaks:QuotingTracker"
ENVIRONMENT = {
    "WANDB_API_KEY": "ca4a01" + "0123456789abcdef" * 2 + "01",
    "MLFLOW_TRACKING_USERNAME": "someone",
    "MLFLOW_TRACKING_PASSWORD": "canary-02-Zq",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvCanary03Zq",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNNCANARY04",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/canary05Zq",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEcanary06Zq",
    "NEPTUNE_API_TOKEN": base64.b64encode(b'{"api_key": "canary07Zq"}').decode(),
    "OPENAI_API_KEY": "sk-proj-AbCd1234canary08Zq",
    "TINKER_API_KEY": "tml-AbCdEfGh1234canary09Zq",
    "GITHUB_TOKEN": "ghp_AbCdEfGh1234canary10Zq567890",
    "SERVICE_API_KEY": "of no known form canary11Zq",
    "SERVICE_URL": "https://me:canary12Zq@tracker.example/runs?token=canary13Zq",
    "OUR_JUDGE": "canary14Zq of a form of its own",
}
ADDRESS = "canary15Zq"
CANARIES = {
    **{name: value for name, value in ENVIRONMENT.items() if name not in ("MLFLOW_TRACKING_USERNAME", "SERVICE_URL")},
    "the key within NEPTUNE_API_TOKEN": "canary07Zq",
    "the password in SERVICE_URL": "canary12Zq",
    "the token in SERVICE_URL": "canary13Zq",
    "the password in MLFLOW_TRACKING_URI": ADDRESS,
    "what MLflow's client sends": base64.b64encode(b"someone:canary-02-Zq").decode(),
    "what a client makes of the address": base64.b64encode(f"me:{ADDRESS}".encode()).decode(),
}


class QuotingTracker(QuietLogger):
    """Has an address with a password, and quotes the key that it refuses."""

    def start(self, run: Any) -> Opened:
        return Opened(os.environ["SERVICE_URL"])

    def log_metrics(self, metrics: Any, step: int) -> None:
        key, token = os.environ["SERVICE_API_KEY"], os.environ["HF_TOKEN"]
        raise RuntimeError(f"401: {key} is not the key to {os.environ['SERVICE_URL']}; connect(token={token!r})")


class Service(ThreadingHTTPServer):
    """Refuses every request and quotes what it was sent to prove itself; ``sent`` holds that."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refusal)
        self.sent: set[str] = set()
        self.address = f"127.0.0.1:{self.server_address[1]}"


class _Refusal(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        sent = self.headers.get("Authorization", "")
        self.server.sent.add(sent)  # type: ignore[attr-defined]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        text = f'{{"error": {{"message": "wrong key: {sent}"}}, "message": "you sent {sent}"}}'.encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def leaks(folder: Path, said: Mapping[str, str]) -> list[str]:
    """Where a canary stands: ``file: its name``, for every file under a folder, their names, and what was said."""
    places = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places |= {what: text.encode() for what, text in said.items()}
    return [
        f"{place}: {name}"
        for place, held in sorted(places.items())
        for name, canary in CANARIES.items()
        if canary.encode() in held or canary in place
    ]


def test_a_canary_that_was_planted_by_hand_is_found(tmp_path: Path) -> None:
    for number, canary in enumerate(CANARIES.values()):
        place = tmp_path / "deep" / f"{number}.bin"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"\x00\xff" * 5000 + canary.encode() + b"\xff")
        assert {line.partition(": ")[0] for line in leaks(tmp_path, {})} == {str(place)}
        place.unlink()
    (tmp_path / "rows-canary12Zq").touch()
    assert len(leaks(tmp_path, {"terminal": "a\ncanary13Zq"})) == 2


def test_nothing_that_a_run_leaves_behind_holds_a_secret(
    words: tuple[str, ...],
    tiny_model: Path,
    tmp_path: Path,
    start: Callable[..., Any],
    service: Service,
    migrated_database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR", "TRACKIO_DIR", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    places = {name: str(tmp_path / place) for name, place in (("HOME", "home"), ("PREFECT_HOME", "prefect"))}
    environment = ENVIRONMENT | places | {"TMPDIR": str(tmp_path / "tmp"), "WANDB_MODE": "offline"}
    for folder in ("home", "tmp", "runs"):
        (tmp_path / folder).mkdir()
    shutil.copyfile(migrated_database, tmp_path / "runs" / "mlflow.db")
    said: dict[str, str] = {}

    def run(what: str, given: tuple[str, ...], module: str = "flows.sft", **changes: str) -> int:
        ended = start(given, module=module, **(environment | changes)).end()
        said[what] = ended.out + ended.err
        return ended.status

    short = (*words, "train.max_steps=3", "tracking.finish_wait_s=120")
    tracked = (*short, f"report_to=[console, {', '.join(TRACKERS)}, '{QUOTING}']")
    assert run("the run", tracked) == 0, said["the run"]
    run_dir = next((tmp_path / "runs").glob("*/metrics.jsonl")).parent
    assert {name: cursor(run_dir, name)["state"] for name in TRACKERS} == dict.fromkeys(TRACKERS, "done")
    refused = cursor(run_dir, "tests.flows.test_no_secret_leaks-QuotingTracker")
    assert refused["problem"].startswith("RuntimeError: 401: [redacted] is not the key to https://me:[redacted]@")

    asked = f"win_rate.judge={tiny_model}", f"win_rate.judge_url=http://{service.address}"
    judged = (*short, "win_rate.num_prompts=2", *asked, "win_rate.judge_api_key_env=OUR_JUDGE")
    assert run("the judged run", judged) != 0
    assert f"Bearer {ENVIRONMENT['OUR_JUDGE']}" in service.sent
    assert "wrong key" in said["the judged run"]

    plain, named = (f"http://{login}{service.address}" for login in ("", f"me:{ADDRESS}@"))
    export = ("export", str(run_dir), "--to", "mlflow", "--wait-s", "60")
    assert run("the export", export, "crucible_train.tracking", MLFLOW_TRACKING_URI=plain) != 0
    unnamed = {name: "" for name in ENVIRONMENT if name.startswith("MLFLOW_")}
    assert run("the other export", export, "crucible_train.tracking", MLFLOW_TRACKING_URI=named, **unnamed) != 0
    proofs = {
        f"Basic {CANARIES[name]}" for name in ("what MLflow's client sends", "what a client makes of the address")
    }
    assert proofs <= service.sent
    assert run("the status", ("status", "runs"), "crucible_train.tracking") != 0
    assert run("the list", ("show", run_dir.name), "crucible_train.runs") == 0

    assert "tracker.example" in said["the status"]
    for name in (
        "runs/mlflow.db",
        "runs/trackio",
        "runs/neptune",
        "runs/tensorboard",
        "runs/wandb",
        "prefect/prefect.db",
    ):
        assert (tmp_path / name).exists(), name
    assert leaks(tmp_path, said) == []
    (run_dir / "planted").write_text(ENVIRONMENT["HF_TOKEN"])
    assert leaks(tmp_path, said) == [f"{run_dir / 'planted'}: HF_TOKEN"]
