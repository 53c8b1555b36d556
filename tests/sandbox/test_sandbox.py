"""Programs run, limits are met, callers are cancelled, many run at once, and nothing stays behind."""

import asyncio
import functools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from crucible_train.errors import ConfigError, DataError, SandboxError
from crucible_train.sandbox import Call, Calls, Exchange, Limits, Sandbox, Status

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is made of Linux")


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@pytest.fixture(params=["never", "always"], ids=["L+S+R", "N+L+S+R"])
def sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    try:
        made = Sandbox(namespaces=request.param, concurrency=64)
    except SandboxError as problem:
        pytest.skip(str(problem))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with made:
        yield made
    assert list(tmp_path.iterdir()) == []
    assert _inside(tmp_path) == []


def _inside(folder: Path) -> list[str]:
    """Processes that work in a folder."""
    found = []
    for pid in filter(str.isdigit, (path.name for path in Path("/proc").iterdir())):
        try:
            place = str(Path(f"/proc/{pid}/cwd").readlink())
        except OSError:
            continue
        found += [pid] * place.startswith(str(folder))
    return found


@in_a_loop
async def test_a_program_reads_writes_and_imports(sandbox: Sandbox) -> None:
    code = """
import sys, helper
open("out", "w").write("x")
print(helper.double(int(sys.stdin.read())), open("d/data").read())
"""
    files = {"helper.py": "def double(n): return 2 * n", "d/data": b"kept"}
    result = await sandbox.run(code, stdin="21", files=files)
    assert (result.status, result.stdout, result.stderr, result.exit_code) == (Status.OK, "42 kept\n", "", 0)


@in_a_loop
async def test_the_order_of_a_set_is_the_same_in_every_run(sandbox: Sandbox) -> None:
    code = "import os\nprint(list({str(n) for n in range(50)}), dict(os.environ))"
    first, second = await asyncio.gather(sandbox.run(code), sandbox.run(code))
    assert first.stdout == second.stdout
    assert first.stdout.endswith("] {}\n")


@in_a_loop
async def test_what_honest_solutions_use_works(sandbox: Sandbox) -> None:
    code = """
import asyncio, collections, concurrent.futures, datetime, decimal, fractions, functools, heapq, itertools, json, math
import random, re, statistics, string, tempfile, threading, time, typing, uuid, zoneinfo, platform, dataclasses, bisect
async def main(): await asyncio.sleep(0.001); return 1
assert asyncio.run(main()) == 1
with concurrent.futures.ThreadPoolExecutor(4) as pool: assert sum(pool.map(abs, range(9))) == 36
with tempfile.TemporaryDirectory() as folder: open(folder + "/x", "w").write("x")
assert uuid.uuid4() and random.random() < 1 and datetime.datetime.now().year > 2000
import signal; signal.alarm(5)
print("all", "é", sep=" ")
"""
    result = await sandbox.run(code)
    assert (result.status, result.stdout) == (Status.OK, "all é\n"), result


@pytest.mark.parametrize(
    ("code", "status", "exception"),
    [
        ("raise ValueError('no')", Status.ERROR, "ValueError"),
        ("import sys; sys.exit(3)", Status.ERROR, None),
        ("x = bytearray(1 << 40)", Status.MEMORY, "MemoryError"),
        ("import os; os.abort()", Status.KILLED, None),
        ("import os; os._exit(255)", Status.ERROR, None),
        ("def", Status.ERROR, "SyntaxError"),
        ("\0", Status.ERROR, "SyntaxError"),
    ],
)
@in_a_loop
async def test_every_end_is_a_result(sandbox: Sandbox, code: str, status: Status, exception: str | None) -> None:
    result = await sandbox.run(code)
    assert (result.status, result.exception) == (status, exception)


@in_a_loop
async def test_a_traceback_names_the_programs_lines_only(sandbox: Sandbox) -> None:
    result = await sandbox.run("def f():\n    return 1 / 0\nf()")
    lines = [line for line in result.stderr.splitlines() if "File" in line]
    assert lines == ['  File "main.py", line 3, in <module>', '  File "main.py", line 2, in f']


@in_a_loop
async def test_calls_and_exchanges_are_judged(sandbox: Sandbox) -> None:
    cases = [Call((2, 3), 5), Call(("a", "b"), "ab"), Call(([1],), [1, 2.0], kwargs={"b": [2]}), Call((1, 1), 3)]
    verdict = await sandbox.passes("def add(a, b): return a + b", Calls("add", cases))
    assert verdict.passed == (True, True, True, False)
    assert (verdict.fraction, verdict.all_passed, verdict.detail) == (0.75, False, "call 3 returned 2")
    method = "class Solution:\n    def pair(self, n): return {'n': (n, None)}"
    assert (await sandbox.passes(method, Calls("Solution.pair", [Call((1,), {"n": [1, None]})]))).all_passed
    program = "print(sum(map(int, input().split())))"
    verdict = await sandbox.passes(program, [Exchange("1 2", "3"), Exchange("4 5\n", "9\n\n"), Exchange("1", "2")])
    assert verdict.passed == (True, True, False)
    assert not (await sandbox.passes(program, [])).all_passed


@in_a_loop
async def test_tests_before_a_limit_count(sandbox: Sandbox) -> None:
    code = "def f(n):\n    while n == 2: pass\n    return n"
    verdict = await sandbox.passes(code, Calls("f", [Call((n,), n) for n in range(4)]), Limits(cpu_s=1))
    assert (verdict.status, verdict.passed) == (Status.TIMEOUT, (True, True, False, False))


UNNAMED = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for _ in range(8):
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(1 << 20))
    os.unlink("f")
    if MAPPED:
        libc.mmap(None, 4096, 1, 1, fd, 0)
        os.close(fd)
time.sleep(30)
"""


@pytest.mark.parametrize("mapped", [False, True], ids=["open", "mapped"])
@in_a_loop
async def test_files_without_a_name_count_where_we_may_look(sandbox: Sandbox, mapped: bool) -> None:
    if not _may_trace():
        pytest.skip("only root that may trace sees the descriptors of another")
    code = UNNAMED.replace("MAPPED", str(mapped))
    kept = await sandbox.run(code, limits=Limits(wall_s=3.0, folder_bytes=16 << 20))
    assert kept.status is Status.TIMEOUT
    stopped = await sandbox.run(code, limits=Limits(wall_s=30.0, folder_bytes=4 << 20))
    assert stopped.status is Status.FILES


def _may_trace() -> bool:
    """Whether we have the capabilities to look into a process (19) and its mappings (21)."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")]
    return os.geteuid() == 0 and all(int(line.split()[1], 16) >> number & 1 for number in (19, 21))


@in_a_loop
async def test_sixty_four_at_once_keep_apart_and_leave_nothing(sandbox: Sandbox) -> None:
    """Of every four, one is honest, one floods, one never ends, one dies."""
    codes = [
        "import os\nopen('own', 'w').write('{n}')\nprint(open('own').read(), os.listdir('.'))",
        "while True: print('{n}' * 1000)",
        "import threading\nwhile True: threading.Event().wait()",
        "import ctypes; ctypes.string_at(0)",
    ]
    expected = [Status.OK, Status.OUTPUT, Status.TIMEOUT, Status.KILLED]
    limits = Limits(wall_s=60.0, output_bytes=20_000)
    short = Limits(wall_s=0.5)
    runs = [sandbox.run(codes[n % 4].format(n=n), limits=short if n % 4 == 2 else limits) for n in range(64)]
    results = await asyncio.gather(*runs)
    assert [result.status for result in results] == expected * 16
    assert [result.stdout for result in results[::4]] == [f"{n} ['own']\n" for n in range(0, 64, 4)]


@in_a_loop
async def test_a_cancelled_caller_leaves_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    """Whether the program waits, is being started, or runs."""
    tasks = [
        asyncio.create_task(sandbox.run("import time; time.sleep(600)", limits=Limits(wall_s=600))) for _ in range(6)
    ]
    while len(_inside(tmp_path)) < 6:
        await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(sandbox.run("import time; time.sleep(600)")) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert _inside(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@in_a_loop
async def test_programs_wait_for_their_turn_and_can_be_cancelled_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(namespaces="never", concurrency=1) as sandbox:
        first = asyncio.create_task(sandbox.run("import time; time.sleep(600)", limits=Limits(wall_s=600)))
        await asyncio.sleep(0)
        second = asyncio.create_task(sandbox.run("print(2)"))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await sandbox.run("print(3)")).stdout == "3\n"


_HARNESS = """
import asyncio, sys
from crucible_train.sandbox import Limits, Sandbox
with Sandbox(namespaces=sys.argv[1]) as sandbox:
    asyncio.run(sandbox.run("import time; time.sleep(600)", limits=Limits(wall_s=600)))
"""


@pytest.mark.parametrize("namespaces", ["never", "always"])
def test_a_killed_harness_takes_its_programs_along(namespaces: str, tmp_path: Path) -> None:
    try:
        Sandbox(namespaces=namespaces)
    except SandboxError as problem:
        pytest.skip(str(problem))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    harness = subprocess.Popen([sys.executable, "-c", _HARNESS, namespaces], env=environment)
    while not _sleeping(tmp_path):
        assert harness.poll() is None
        time.sleep(0.01)
    harness.kill()
    harness.wait()
    while _inside(tmp_path):  # the test's own time limit is what fails
        time.sleep(0.01)


def _sleeping(folder: Path) -> bool:
    """Whether a program in the folder has started: its launcher is confined, so the program's own sleep it is."""
    for pid in _inside(folder):
        with suppress(OSError):  # it has ended since
            if "nanosleep" in Path(f"/proc/{pid}/wchan").read_text():
                return True
    return False


def test_a_detail_cannot_steer_a_terminal() -> None:
    with Sandbox(namespaces="never") as sandbox:
        code = "import sys\nprint('\\x1b[31m', file=sys.stderr)\nraise ValueError('\\x1b[2J\\r' + chr(0x202e))"
        verdict = asyncio.run(sandbox.passes(code, Calls("f", [Call((), 1)])))
    assert verdict.detail == "call 0 did not return: error ValueError: \\x1b[2J\\r\\u202e"


def test_it_works_off_the_main_thread_too() -> None:
    found = []
    with Sandbox(namespaces="never") as sandbox:
        thread = threading.Thread(target=lambda: found.append(asyncio.run(sandbox.run("print(1)")).stdout))
        thread.start()
        thread.join()
    assert found == ["1\n"]


@in_a_loop
async def test_folders_named_may_be_imported_from_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text("answer = 42")
    code = f"import library\nprint(library.answer)\nopen({str(tmp_path / 'library.py')!r}, 'a')"
    for namespaces in ("never", "auto"):
        with Sandbox(namespaces=namespaces, import_paths=[tmp_path]) as sandbox:
            result = await sandbox.run(code)
        assert (result.stdout, result.exception in ("PermissionError", "OSError")) == ("42\n", True), result


@in_a_loop
async def test_a_fault_of_the_sandbox_is_raised_and_so_is_a_wrong_question(tmp_path: Path) -> None:
    (tmp_path / "goes").mkdir()
    with Sandbox(namespaces="never", import_paths=[tmp_path / "goes"]) as sandbox:
        (tmp_path / "goes").rmdir()
        with pytest.raises(SandboxError, match=r"did not start: FileNotFoundError.*goes"):
            await sandbox.run("print(1)")
        with pytest.raises(SandboxError, match=r"did not start: FileNotFoundError.*goes"):
            await sandbox.passes("print(1)", [Exchange("", "1")] * 3)
    with Sandbox(namespaces="never") as sandbox:
        with pytest.raises(DataError, match="relative path"):
            await sandbox.run("", files={"../out": ""})
        with pytest.raises(DataError, match="not JSON"):
            await sandbox.passes("", Calls("f", [Call((), object())]))
    with pytest.raises(ConfigError, match=r"Limits.wall_s must be above 0"):
        Limits(wall_s=0)
    with pytest.raises(ConfigError, match="is not a folder"):
        Sandbox(import_paths=[Path("/nowhere")])
