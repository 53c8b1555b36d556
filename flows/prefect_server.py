"""A temporary Prefect server that lives exactly as long as the command that started it.

The child (``prefect_server_child.py``) writes ``port N`` at once and ``ready`` when it answers, so nobody polls. It
reads its standard input: the end of that means that the parent is done or dead, so no server outlives a command, not
even one that got SIGKILL. Nothing here imports Prefect: the server starts while the command still imports.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crucible_train.errors import RunError

CHILD = Path(__file__).with_name("prefect_server_child.py")
START_LIMIT_S = 120.0
STOP_LIMIT_S = 5.0
# What a server for one command does not need: telemetry, the pages, block types, automations.
LEAN = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


class ServerError(RunError):
    """There is no Prefect server to run with."""


class TemporaryServer:
    """Started by construction: read ``api_url`` before Prefect is imported, wait before a flow, stop at the end."""

    def __init__(self) -> None:
        """Start the child and listen to it."""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._port: int | None = None
        self._is_ready = self._has_ended = False
        self._changed = threading.Condition()
        self._started_at = time.monotonic()
        inherited = {k: v for k, v in os.environ.items() if k not in {"PREFECT_API_URL", "PREFECT_API_KEY"}}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**inherited, **LEAN},
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def api_url(self) -> str:
        """Where the server is, or will be.

        Raises:
            ServerError: it could not start.
        """
        self._wait(lambda: self._port is not None)
        return f"http://127.0.0.1:{self._port}/api"

    def wait_until_ready(self) -> None:
        """Wait until it answers.

        Raises:
            ServerError: it could not start.
        """
        self._wait(lambda: self._is_ready)

    def stop(self) -> None:
        """Let it write what it still holds, and end it."""
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"bye\n")
            self._process.stdin.close()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.decode().strip().partition(" ")
            with self._changed:
                self._port = int(rest) if word == "port" else self._port
                self._is_ready = self._is_ready or word == "ready"
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> None:
        remaining = START_LIMIT_S - (time.monotonic() - self._started_at)
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._has_ended, timeout=max(remaining, 0))
            if condition():
                return
            has_ended = self._has_ended
        self._process.kill()  # it serves nobody yet
        code = self._process.wait()
        why = (
            f"ended with status {code}: {self._last_error()}"
            if has_ended
            else f"gave no answer in {START_LIMIT_S:.0f} s"
        )
        raise ServerError(f"the temporary Prefect server {why}; or set PREFECT_API_URL to a server of yours")

    def _last_error(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt): ", line)]
        return (errors or lines or ["no message"])[-1]


def configured_api_url() -> str | None:
    """The server the user already has: from the environment, or where Prefect's own settings would find one.

    The same places in the same order as Prefect reads, without the two seconds of importing it.
    """
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    dotenv = _dotenv()
    project, tool = _table("prefect.toml"), _table("pyproject.toml").get("tool", {}).get("prefect", {})
    for url in (dotenv.get("PREFECT_API_URL"), project.get("api", {}).get("url"), tool.get("api", {}).get("url")):
        if url:
            return str(url)
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    path = (
        os.environ.get("PREFECT_PROFILES_PATH")
        or dotenv.get("PREFECT_PROFILES_PATH")
        or project.get("profiles_path")
        or tool.get("profiles_path")
        or home / "profiles.toml"
    )
    profiles = _table(path)
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    url = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None


def _table(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _dotenv() -> Mapping[str, str | None]:
    if not Path(".env").is_file():
        return {}
    from dotenv import dotenv_values  # noqa: PLC0415 - Prefect brings it, and hardly anybody needs it

    return dotenv_values(".env")
