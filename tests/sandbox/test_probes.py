"""The thirty probes in every set-up this machine can make: with and without namespaces, as root and as anybody."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crucible_train.sandbox.folder import reachable
from crucible_train.sandbox.layers import interpreter

ROOT = Path(__file__).parents[2]
HOST = Path(__file__).with_name("host.py")
NOBODY = 65534
# what may be tried without walls: it harms nobody, and it bites
BITING = (1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 15, 24)
# what the file layers and what the missing version of Landlock would stop
OF_FILES = (1, 2, 3, 6, 7, 8, 9, 15, 17, 23, 30)

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is made of Linux"),
    pytest.mark.timeout(600),
]


def _open_interpreter() -> Path:
    """An interpreter that any user can start, with its library."""
    candidates = [interpreter(), *(Path(f"/usr/bin/python3.{minor}") for minor in range(11, 16))]
    for path in candidates:
        if path.exists() and reachable(path) and (path == interpreter() or path.parent == Path("/usr/bin")):
            return path
    pytest.skip("no interpreter here can be started by a normal user")


def _escapes(setup: str, user: str, *numbers: int) -> dict[str, Any]:
    """What the probes got away with in this set-up, run in a process of its own as that user."""
    words: dict[str, Any] = {}
    python = interpreter()
    if user == "root" and os.geteuid() != 0:
        pytest.skip("the tests do not run as root")
    if user == "a normal user" and os.geteuid() == 0:
        python, words = _open_interpreter(), {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    done = subprocess.run(
        [str(python), "-B", str(HOST), setup, *map(str, numbers)],
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=500,
        cwd="/",
        **words,
    )
    problem = (done.stderr.strip().splitlines() or [""])[-1]
    if setup.startswith("always") and "namespaces are asked for" in problem:
        pytest.skip(problem)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("user", ["root", "a normal user"])
@pytest.mark.parametrize(
    ("setup", "layers"),
    [
        pytest.param("always", ["namespaces", "Landlock", "seccomp", "rlimits"], id="N+L+S+R"),
        pytest.param("never", ["Landlock", "seccomp", "rlimits"], id="L+S+R"),
    ],
)
def test_no_probe_escapes(setup: str, layers: list[str], user: str, subtests: pytest.Subtests) -> None:
    if setup == "always" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    seen = _escapes(setup, user)
    assert all(layer in seen["layers"] for layer in layers), seen["layers"]
    assert ("a user of its own" in seen["layers"]) == (user == "root")
    assert sorted(map(int, seen["escapes"])) == list(range(1, 31))
    for number, escapes in seen["escapes"].items():
        with subtests.test(probe=int(number)):
            assert escapes == []
    assert seen["left"] == []


@pytest.mark.parametrize("setup", ["always without Landlock", "never with Landlock 1"])
def test_an_older_kernel_is_as_closed(setup: str, subtests: pytest.Subtests) -> None:
    """What one layer lacks, others deny; the first version of Landlock knows only files."""
    if setup.startswith("always") and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    for number, escapes in _escapes(setup, "a normal user", *OF_FILES)["escapes"].items():
        with subtests.test(probe=int(number)):
            assert escapes == []


def test_the_probes_bite_where_there_are_no_walls(subtests: pytest.Subtests) -> None:
    for number, escapes in _escapes("bare", "a normal user", *BITING)["escapes"].items():
        with subtests.test(probe=int(number)):
            assert any("ESCAPED" in escape or "reached" in escape for escape in escapes)
