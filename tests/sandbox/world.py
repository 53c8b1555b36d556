"""What the probes are after: secrets, listeners and a victim of the user who runs the sandbox."""

import contextlib
import hashlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from crucible_train.sandbox import Calls, Limits, Result, Sandbox, Verdict

CANARY = "canary-5f1c7e"

_PRELUDE = """
import os
W = {world!r}
def attempt(label, act):
    try:
        outcome = act()
    except BaseException as problem:
        print("held", label, type(problem).__name__, problem)
    else:
        print("ESCAPED" if outcome not in (None, False) else "held", label, repr(outcome)[:200])
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    # a system call is denied only if the filter answered: any other error means that the kernel looked at it
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1 and ctypes.get_errno() in (1, 38):
        raise PermissionError(ctypes.get_errno(), "denied")
    return "answered %d, errno %d" % (result, ctypes.get_errno())
"""


@dataclass
class World:
    """The user's own things, made by whoever runs the sandbox and readable to all by their file modes."""

    sandbox: Sandbox
    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sandbox-home-")))
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.stack.callback(shutil.rmtree, self.home, ignore_errors=True)
        os.environ["CANARY_KEY"] = CANARY
        self.home.chmod(0o777)
        (self.home / "secret.txt").write_text(CANARY)
        (self.home / "open.txt").write_text("do not touch")
        (self.home / "open.txt").chmod(0o666)
        (self.home / "folder").mkdir()
        self.tcp = self._listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self.udp = self._listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        self.abstract = self._listener(socket.AF_UNIX, socket.SOCK_STREAM, "\0sandbox-" + self.home.name)
        self.datagrams = self._listener(socket.AF_UNIX, socket.SOCK_DGRAM, "\0datagrams-" + self.home.name)
        self.path = self._listener(socket.AF_UNIX, socket.SOCK_STREAM, str(self.home / "socket"))
        (self.home / "socket").chmod(0o777)
        self.victim = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"], env={"CANARY_KEY": CANARY}
        )
        self.stack.callback(self.victim.wait)
        self.stack.callback(self.victim.kill)
        leaked, write = os.pipe()
        for descriptor in (leaked, write):
            os.set_inheritable(descriptor, True)
            self.stack.callback(os.close, descriptor)
        self.before = self.state()

    def _listener(self, family: int, kind: int, address: object) -> socket.socket:
        listener = self.stack.enter_context(socket.socket(family, kind))
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        return listener

    def facts(self) -> dict[str, object]:
        """What a hostile program knows."""
        return {
            "home": str(self.home),
            "canary": "".join(reversed(CANARY)),  # so that finding it in its own source is no find
            "walls": self.sandbox.layers.confines,
            "host": os.getpid(),
            "victim": self.victim.pid,
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "abstract": self.abstract.getsockname(),
            "datagrams": self.datagrams.getsockname(),
            "x86": os.uname().machine == "x86_64",
            "hostname": socket.gethostname(),
        }

    def hostile(self, code: str) -> str:
        return _PRELUDE.format(world=self.facts()) + code

    async def escapes(self, code: str, limits: Limits = Limits()) -> list[str]:
        """What a hostile program got away with: its own words, and what changed. It has to run to its end."""
        result = await self.sandbox.run(self.hostile(code), limits=limits)
        tried = result.stdout.count("ESCAPED") + result.stdout.count("held")
        unfinished = [] if tried and result.exit_code == 0 else [f"did not run: {result}"]
        return [*unfinished, *self.words(result), *self.changes()]

    async def run(self, code: str, limits: Limits = Limits()) -> Result:
        return await self.sandbox.run(self.hostile(code), limits=limits)

    async def judge(self, code: str, tests: Calls) -> Verdict:
        return await self.sandbox.passes(self.hostile(code), tests)

    @staticmethod
    def words(result: Result) -> list[str]:
        said = [line for line in result.stdout.splitlines() if line.startswith("ESCAPED")]
        return said + ([f"the canary is in the output: {result}"] if CANARY in result.stdout + result.stderr else [])

    def changes(self) -> list[str]:
        """What is not as it was: files, listeners that were reached, the victim."""
        reached = select.select([self.tcp, self.udp, self.abstract, self.datagrams, self.path], [], [], 0)[0]
        found = [f"a listener was reached: {listener.getsockname()!r}" for listener in reached]
        found += ["the victim is gone"] * (self.victim.poll() is not None)
        state = self.state()
        return found + [
            f"changed: {path}" for path in self.before.keys() | state.keys() if self.before.get(path) != state.get(path)
        ]

    def state(self) -> dict[str, object]:
        """Every file of the home: kind and mode, owner, size, time of change, content."""
        found: dict[str, object] = {}
        for path in [self.home, *self.home.rglob("*")]:
            info = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = (info.st_mode, info.st_uid, info.st_nlink, info.st_size, info.st_mtime_ns, content)
        return found
