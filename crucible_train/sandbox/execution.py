"""One run from request to result: the folder, the launcher, the supervisor, and what the run's traces mean."""

import json
import math
import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from crucible_train.errors import SandboxError
from crucible_train.sandbox import layers as layering
from crucible_train.sandbox.folder import fresh_folder
from crucible_train.sandbox.inside import launcher
from crucible_train.sandbox.layers import Layers
from crucible_train.sandbox.limits import Limits, Result, Status
from crucible_train.sandbox.supervise import Ended, Supervisor

PlainCall = tuple[list[Any], dict[str, Any]]
_START = (
    "import sys\nsys.path.insert(0, sys.argv[1])\nimport launcher\ndel sys.path[0], sys.modules['launcher']\n"
    "launcher.main(int(sys.argv[2]), int(sys.argv[3]))"
)
_INSIDE = str(Path(launcher.__file__).parent)  # importing it here leaves its compiled form for every run
_LINE_BYTES = 256  # of a line on the channel beside its value


@dataclass(frozen=True, slots=True)
class Job:
    """What one process is to run: a program with its input and files, and perhaps calls of one of its functions."""

    source: str
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    function: str = ""
    calls: Sequence[PlainCall] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A result, and the JSON text each call returned; a call that raised or never came has none."""

    result: Result
    values: Mapping[int, str]
    raised: Mapping[int, str]


def execute(layers: Layers, imports: Sequence[str], job: Job, limits: Limits, cancelled: Event) -> Run:
    """Run a job; blocks until nothing of it is left.

    Raises:
        SandboxError: the launcher did not get as far as the program.
    """
    nonce = secrets.token_hex(16)
    uid = layering.new_uid(layers)
    most = (limits.value_bytes + _LINE_BYTES) * (len(job.calls) + 2)
    with fresh_folder(uid) as folder:
        request = {
            **layering.confinement(layers, limits, folder, uid, imports),
            "nonce": nonce,
            "source": job.source,
            "files": {name: content.decode("latin-1") for name, content in job.files.items()},
            "import_paths": list(imports),
            "function": job.function,
            "calls": list(job.calls),
            "value_bytes": limits.value_bytes,
        }
        command = [*layering.command(layers, folder, imports, _INSIDE), "-c", _START]
        command.append(_INSIDE if layers.bwrap is None else layering.LAUNCHER)
        supervisor = Supervisor(limits, folder, _line(nonce, "ready"), most, cancelled)
        ended = supervisor.run(command, json.dumps(request).encode(), job.stdin, layers.bwrap is not None)
    return _read(ended, nonce, limits, len(job.calls))


def _line(nonce: str, kind: str) -> bytes:
    return f"{nonce} {kind} \n".encode()


def _read(ended: Ended, nonce: str, limits: Limits, num_calls: int) -> Run:
    lines = ended.channel.split(b"\n")
    if lines[0] + b"\n" != _line(nonce, "ready") and ended.stopped is None:
        raise SandboxError(f"the sandbox did not start: {_why(lines[0], ended, nonce)}")
    values: dict[int, str] = {}
    raised: dict[int, str] = {}
    whole = all(_take(line, nonce, values, raised, num_calls) for line in lines[1:-1]) and not lines[-1]
    exception = raised.pop(-1, None)
    status, exit_code, number = _ending(ended, limits, exception)
    if not whole and ended.stopped is None and status is not Status.TIMEOUT:
        status = Status.MALFORMED
    stdout, stderr = (text.decode("utf-8", "backslashreplace") for text in (ended.stdout, ended.stderr))
    result = Result(status, stdout, stderr, exit_code, number, exception, ended.duration_s)
    return Run(result, values if status is not Status.MALFORMED else {}, raised)


def _why(line: bytes, ended: Ended, nonce: str) -> str:
    text = line.decode("utf-8", "replace").removeprefix(f"{nonce} fault ")
    told = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    return text or (told[-1] if told else f"it ended with status {ended.returncode}")


def _take(line: bytes, nonce: str, values: dict[int, str], raised: dict[int, str], num_calls: int) -> bool:
    """Note one line of the channel; False if the launcher would not have written it."""
    try:
        begin, kind, index, text = line.decode().split(" ", 3)
        at = -1 if index == "-" else int(index)
    except ValueError:
        return False
    if begin != nonce or at in values or at in raised or not -1 <= at < num_calls or (kind == "value" and at < 0):
        return False
    if kind not in ("value", "raised"):
        return False
    (values if kind == "value" else raised)[at] = text
    return True


def _ending(ended: Ended, limits: Limits, exception: str | None) -> tuple[Status, int | None, int | None]:
    """Status, exit status and signal."""
    code = ended.returncode
    number = -code if code < 0 else None
    exit_code = code if number is None else None
    if ended.stopped is not None:
        return ended.stopped, exit_code, number
    # the limit of processor time kills too, and it takes that long to meet it; else it was the machine's lack of memory
    if number == signal.SIGKILL and ended.duration_s * (os.cpu_count() or 1) >= math.ceil(limits.cpu_s) - 0.5:
        return Status.TIMEOUT, exit_code, number
    if number is not None:
        return Status.KILLED, exit_code, number
    if code == 0:
        return Status.OK, exit_code, number
    return (Status.MEMORY if exception == "MemoryError" else Status.ERROR), exit_code, number
