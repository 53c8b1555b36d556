"""What every test stands on: a home of its own, no network, a tiny real model and a few real rows."""

import json
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything of ours, of transformers or of Prefect is imported: caches and settings of the user stay out of it.
_HOME = tempfile.TemporaryDirectory(prefix="crucible-tests-")
os.environ["HOME"] = _HOME.name
os.environ["PREFECT_HOME"] = str(Path(_HOME.name) / "prefect")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
# Followers have Linux's idle priority: beside tests of ordinary priority on every core they would wait for minutes.
os.nice(19)
for _name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "HF_HOME", "XDG_CACHE_HOME"):
    os.environ.pop(_name, None)

import hypothesis  # noqa: E402 - what it loads must see that environment
import pytest  # noqa: E402

# The same examples every time, however slow the machine: `--hypothesis-profile=default` looks for others.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).parents[1]
_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches beyond this machine fails."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(_LOOPBACK):
            raise AssertionError(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a two-layer Llama with random weights and the real SmolLM2 tokenizer. Not to be written to."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from crucible_train.renderers import FastTokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=49152,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    FastTokenizer.from_folder(ROOT / "crucible_train" / "assets" / "smollm2").to_folder(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """Twenty-four short conversations as JSON lines."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} plus {i + 1}?"},
                {"role": "assistant", "content": f"{i} + {i + 1} = {2 * i + 1}\n#### {2 * i + 1}"},
            ]
        }
        for i in range(24)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_home() -> Iterator[None]:
    """Take the home away when the session ends."""
    yield
    _HOME.cleanup()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a real S3 server on this machine."""
    import logging

    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    put, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_alone(*args: Any, **options: Any) -> Any:
        """S3 keeps ``If-None-Match`` among requests at once; moto looks first and puts then."""
        with one_at_a_time:
            return put(*args, **options)

    S3Response.put_object = put_alone
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    S3Response.put_object = put


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket that s3fs reaches without further settings."""
    import s3fs

    settings = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    for name, value in (settings | {"DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem().mkdir(bucket)
    yield f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them; making one takes seconds, a copy none."""
    from crucible_train.adapters.loggers.mlflow_runs import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A tracker behind HTTP, running, and its address where followers find it."""
    from tests.tracking.http_tracker import TrackingServer

    server = TrackingServer()
    server.start()
    monkeypatch.setenv("HTTP_TRACKER_URL", server.url)
    yield server
    server.stop()
