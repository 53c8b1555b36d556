"""Where nothing can confine a program, it is refused in one line, unless it is explicitly allowed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crucible_train.errors import SandboxError
from crucible_train.sandbox import Limits, Sandbox, probing
from crucible_train.sandbox.layers import Layers, interpreter

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is made of Linux")

# a process that has neither Landlock nor seccomp for good: a filter of its own answers "not implemented"
WITHOUT = r"""
import asyncio, ctypes, json, struct, sys
x86 = __import__("os").uname().machine == "x86_64"
landlock, seccomp, prctl = 444, *((317, 157) if x86 else (277, 167))
load, equal, returns = 0x20, 0x15, 0x06
code = [(load, 0, 0, 0), (equal, 4, 0, landlock), (equal, 3, 0, seccomp), (equal, 0, 3, prctl), (load, 0, 0, 16),
        (equal, 0, 1, 22), (returns, 0, 0, 0x50026), (returns, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("=HBBI", *line) for line in code)
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(code), program)), 0, 0) == 0

from crucible_train.errors import SandboxError
from crucible_train.sandbox import Sandbox
try:
    Sandbox()
except SandboxError as problem:
    refused = str(problem)
with Sandbox(allow_unsandboxed=True) as sandbox:
    result = asyncio.run(sandbox.run("print(6 * 7)"))
    print(json.dumps([refused, str(sandbox.layers), result.status, result.stdout]))
"""


def test_nothing_available_is_refused_in_one_line_unless_allowed(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(interpreter()), "-B", "-c", WITHOUT],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused, layers, status, stdout = json.loads(done.stdout)
    assert "\n" not in refused
    for part in ("Landlock", "bubblewrap is not installed", "seccomp", "allow_unsandboxed=true"):
        assert part in refused
    assert (layers, status, stdout) == ("rlimits", "ok", "42\n")


def test_unsandboxed_programs_still_have_limits_and_leave_nothing_in_their_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import asyncio

    probing.working.cache_clear()
    nothing = Layers(None, 0, False, False, {"landlock": "left out"})
    monkeypatch.setattr(probing, "installed", lambda: nothing)
    with Sandbox(allow_unsandboxed=True) as sandbox:
        code = "import os, time\npid = os.fork()\nprint(pid) if pid else time.sleep(600)"
        result = asyncio.run(sandbox.run(code, limits=Limits(wall_s=60)))
    probing.working.cache_clear()
    assert result.status == "ok"
    while _lives(Path(f"/proc/{int(result.stdout)}/stat")):  # it was killed when its parent ended
        time.sleep(0.01)


def _lives(state: Path) -> bool:
    try:
        return state.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_namespaces_that_are_asked_for_and_missing_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probing.working.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="bubblewrap is not installed"):
        Sandbox(namespaces="always")
    assert Sandbox().layers.bwrap is None  # automatic: it goes without
    probing.working.cache_clear()


def test_a_bubblewrap_that_fails_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a system that forbids user namespaces."""
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    probing.working.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + "/bin")
    layers = Sandbox().layers
    probing.working.cache_clear()
    assert layers.bwrap is None
    assert "setting up uid map: Permission denied" in layers.why_not["bwrap"]
    assert layers.landlock > 0
    assert layers.seccomp
