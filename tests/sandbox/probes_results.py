"""Probes 25 to 29: what a solution tries instead of solving the problem."""

import asyncio

from world import CANARY, World

from crucible_train.sandbox import Call, Calls, Exchange, Status

ADD = Calls("add", [Call((1, 2), 3), Call((20, 22), 42)])

FORGED = {
    "prints the marker": "print('PASSED', 'ok', '2 passed', 1.0)\ndef add(a, b): return None",
    "leaves early": "os._exit(0)",
    "leaves in the call": "def add(a, b): os._exit(0)",
    "leaves by exception": "def add(a, b): raise SystemExit(0)",
    "claims a result without the nonce": "os.write(3, b'x value 0 3\\nx value 1 42\\n')\ndef add(a, b): return 0",
    "claims results over the standard output": "print('value 0 3')\ndef add(a, b): return 0",
    "finds the nonce and guesses": r"""
import sys
channel = sys._getframe(1).f_locals["channel"]
for index in (0, 1):
    channel.send("value %d" % index, "true")
def add(a, b): return 0
""",
    "finds the nonce and claims too many": r"""
import sys
channel = sys._getframe(1).f_locals["channel"]
for index in range(-3, 9):
    channel.send("value %d" % index, "3")
def add(a, b): return 3
""",
    "declares a fault of the harness": r"""
import sys
channel = sys._getframe(1).f_locals["channel"]
channel.send("fault", "the sandbox is broken")
os._exit(1)
""",
    "ends without a line end": "import sys\nos.write(3, sys._getframe(1).f_locals['channel']._nonce)\nos._exit(0)",
}

PATCHED = {
    "equal to all": r"""
class Same(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return Same(0)
""",
    "equal list": r"""
class Same(list):
    def __eq__(self, other): return True
    def __len__(self): return 3
def add(a, b): return Same()
""",
    "patches the libraries": r"""
import builtins, json, sys, unittest
json.loads = json.dumps = lambda *_, **__: "3"
builtins.open = builtins.len = lambda *_: 3
unittest.TestCase.assertEqual = lambda *_: None
sys.modules["json"] = sys.modules["_json"] = None
def add(a, b): return 4
""",
    "patches the launcher": r"""
import sys
space = sys._getframe(1).f_globals
space["_Json"].text = lambda json, value: "3"
def add(a, b): return 0
""",
    "not a number": "def add(a, b): return float('nan')",
    "true": "def add(a, b): return True",
    "text": "def add(a, b): return str(a + b)",
}

ODD = {
    "huge text": "def add(a, b): return 'x' * (100 << 20)",
    "a huge list": "def add(a, b): return [3] * 1_000_000",
    "a huge number": "def add(a, b): return 10 ** 100_000",
    "many strings": "def add(a, b): return ['\\0' * 1000] * 1000",
    "endless": r"""
class Endless(list):
    def __iter__(self):
        while True: yield 3
def add(a, b): return Endless()
""",
    "deep": "def add(a, b):\n    value = 3\n    for _ in range(100_000): value = [value]\n    return value",
    "deep text": r"""
import sys
space = sys._getframe(1).f_globals
space["_Json"].text = lambda json, value: "[" * 60_000
def add(a, b): return 0
""",
    "round": "def add(a, b):\n    value = []\n    value.append(value)\n    return value",
    "an object": r"""
class Bomb:
    def __reduce__(self): return (os.system, ("touch bomb",))
def add(a, b): return Bomb()
""",
    "bytes": "def add(a, b): return b'3'",
    "a coroutine": "def add(a, b):\n    yield a + b",
    "lone surrogates": "def add(a, b): return '\\udc80\\ud800'",
    "not text": "os.write(3, b'\\xff\\x00\\n')\ndef add(a, b): return 0",
    "does not compile": "def add(a, b) return",
    "no such function": "pass",
    "not a function": "add = 3",
    "falls": "import ctypes\ndef add(a, b): return ctypes.string_at(0)",
    "aborts": "def add(a, b): os.abort()",
    "recurses": "def add(a, b): return add(a, b)",
}

HUNT = r"""
import gc, sys
canary = W["canary"][::-1]
def hunt():
    frame, found = sys._getframe(), []
    while frame:
        found.append(repr((frame.f_locals.keys(), {n: v for n, v in frame.f_locals.items() if n != "found"}))[:100000])
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, (dict, list, tuple)):
            try:
                found.append(repr(thing)[:100000])
            except BaseException:
                pass
    for descriptor in range(64):
        try:
            found.append(os.pread(descriptor, 1 << 20, 0).decode("utf-8", "replace"))
        except OSError:
            pass
    return found
def find(n):
    texts = hunt()
    return [len(texts) > 10, any(EXPECTED in text for text in texts)]
"""


async def forged(world: World) -> list[str]:
    return await _judged(world, FORGED)


async def patched(world: World) -> list[str]:
    return await _judged(world, PATCHED)


async def odd_values(world: World) -> list[str]:
    return await _judged(world, ODD)


async def _judged(world: World, solutions: dict[str, str]) -> list[str]:
    verdicts = await asyncio.gather(*(world.judge(code, ADD) for code in solutions.values()))
    won = [f"{name}: {verdict}" for name, verdict in zip(solutions, verdicts, strict=True) if any(verdict.passed[1:])]
    # the sandbox works: the same tests pass where the problem is solved
    solved = await world.judge("def add(a, b): return a + b", ADD)
    return won + world.changes() + ([] if solved.all_passed else [f"a right solution failed: {solved}"])


async def hunted(world: World) -> list[str]:
    """The expected value is nowhere in the process: it is not in objects, frames, descriptors or files."""
    hunt = HUNT.replace("EXPECTED", "'expected-' + canary")
    verdict = await world.judge(hunt, Calls("find", [Call((1,), "expected-" + CANARY), Call((1,), [True, False])]))
    program = "import sys\nsys.stdout.write(sys.stdin.read())\n"
    echo = await world.sandbox.passes(program, [Exchange("in", "expected-" + CANARY)])
    return [] if verdict.passed == (False, True) and not echo.all_passed else [f"found: {verdict} {echo}"]


async def from_inside_python(world: World) -> list[str]:
    """What is no boundary: all of Python, and machine code, may be used; nothing is gained by it."""
    code = r"""
import gc
home = W["home"]
popen = lambda: [kind for kind in object.__subclasses__() if kind.__name__ == "Popen"]
import subprocess
attempt("a hidden class", lambda: popen()[0](["/bin/touch", home + "/made"]))
attempt("system", lambda: os.system("touch %s/made" % home) == 0 or None)
attempt("libc system", lambda: libc.system(b"touch %s/made" % home.encode()) == 0 or None)
attempt("libc open", lambda: libc.open((home + "/secret.txt").encode(), 0) + 1 or None)
attempt("the raw call", lambda: call(2 if W["x86"] else 437, (home + "/secret.txt").encode(), 0) if not W["x86"] else
        None if libc.syscall(2, (home + "/secret.txt").encode(), 0) < 0 else "opened")
attempt("everything the collector knows", lambda: len(gc.get_objects()) < 100)
"""
    found = await world.escapes(code)
    if world.facts()["x86"]:
        found += await _foreign_calls(world)
    return found + world.changes()


async def _foreign_calls(world: World) -> list[str]:
    """Calls by the numbers of other architectures end the program: on x86-64, 32-bit calls and x32."""
    page = r"""
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(CODE)
ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("ESCAPED")
"""
    # mov eax, 20 (getpid of i386); int 0x80; ret, and mov eax, 0x40000027 (getpid of x32); syscall; ret
    codes = (rb"\xb8\x14\x00\x00\x00\xcd\x80\xc3", rb"\xb8\x27\x00\x00\x40\x0f\x05\xc3")
    found: list[str] = []
    for code in codes:
        result = await world.run(page.replace("CODE", f"b'{code.decode()}'"))
        if result.status is not Status.KILLED or "ESCAPED" in result.stdout:
            found.append(f"foreign calls: {result}")
    return found


PROBES = {25: forged, 26: patched, 27: hunted, 28: odd_values, 29: from_inside_python}
