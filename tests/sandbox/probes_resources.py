"""Probes 16 to 24 and 30: what a program tries to use up, to outlive, and to leave behind."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from world import CANARY, World

from crucible_train.sandbox import Limits, Status
from crucible_train.sandbox.folder import PREFIX

SHORT = Limits(wall_s=0.5)

FORKS = r"""
import subprocess, threading, multiprocessing
attempt("fork", os.fork)
attempt("forkpty", os.forkpty)
attempt("posix_spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))
attempt("subprocess", lambda: subprocess.Popen(["/bin/true"]))
attempt("multiprocessing", lambda: multiprocessing.get_context("fork").Process(target=print).start() is None)
attempt("libc fork", lambda: libc.fork() + 1 or None)
for flags in (17, 0x4111, 0x100, 0):
    attempt("clone %x" % flags, lambda: call(56 if W["x86"] else 220, flags, 0, 0, 0, 0))
attempt("clone3", lambda: call(435, ctypes.create_string_buffer(88), 88))
if W["x86"]:
    attempt("the fork call", lambda: call(57))
    attempt("the vfork call", lambda: call(58))
threading.stack_size(65536)
hold, started = threading.Lock(), 0
hold.acquire()
try:
    while started < 20000:
        threading.Thread(target=hold.acquire, daemon=True).start()
        started += 1
except (RuntimeError, MemoryError):
    pass
attempt("threads", lambda: started if started > MOST else None)
import sys
sys.stdout.flush()
os._exit(0)
"""

MEMORY = r"""
import mmap
attempt("bytes", lambda: len(bytearray(1 << 30)))
attempt("mmap", lambda: len(mmap.mmap(-1, 1 << 30)))
attempt("shared mmap", lambda: len(mmap.mmap(-1, 1 << 30, mmap.MAP_SHARED)))
attempt("many", lambda: len([bytearray(1 << 24) for _ in range(64)]))
attempt("memfd", lambda: os.memfd_create("x"))
for place in ("/dev/shm", "/tmp", "/", "/dev", "/run", "/var/tmp"):
    attempt("fill " + place, lambda: open(place + "/filled", "wb").write(bytes(1 << 20)))
attempt("lock", lambda: call(149 if W["x86"] else 228, 0x10000, 4096))
attempt("lift the limit", lambda: __import__("resource").setrlimit(9, (-1, -1)) is None)
"""

FILES = r"""
attempt("sparse", lambda: os.truncate(os.open("s", os.O_WRONLY | os.O_CREAT), 10 << 30) is None)
attempt("sought", lambda: (lambda file: (file.seek(10 << 30), file.write(b"x"), file.flush()))(open("t", "wb")))
attempt("long", lambda: open("u", "wb").write(bytes(64 << 20)))
attempt("fallocate", lambda: os.posix_fallocate(os.open("v", os.O_WRONLY | os.O_CREAT), 0, 1 << 30) is None)
attempt("descriptors", lambda: [os.open("d", os.O_WRONLY | os.O_CREAT) for _ in range(5000)])
"""


async def forks(world: World) -> list[str]:
    # a user of its own has an exact limit; for ours it is the threads of the machine and then some
    most = 32 if world.sandbox.layers.own_uid else 2000
    return await world.escapes(FORKS.replace("MOST", str(most)), Limits(wall_s=30.0, memory_bytes=2 << 30))


async def memory(world: World) -> list[str]:
    found = await world.escapes(MEMORY)
    result = await world.run("while True: W[len(W)] = bytearray(1 << 20)", Limits(memory_bytes=64 << 20))
    return found + _unless(result.status is Status.MEMORY, result)


async def time_limits(world: World) -> list[str]:
    spin, stubborn, asleep = await asyncio.gather(
        world.run("while True: pass", Limits(cpu_s=1.0)),
        world.run(
            "import signal\nfor n in (2, 14, 15, 24): signal.signal(n, lambda *_: None)\nwhile True: signal.pause()",
            SHORT,
        ),
        world.run("import time\ntime.sleep(600)", SHORT),
    )
    found: list[str] = []
    for result in (spin, stubborn, asleep):
        found += _unless(result.status is Status.TIMEOUT, result)
    return found


async def output(world: World) -> list[str]:
    limits = replace(SHORT, wall_s=20.0, output_bytes=100_000)
    found: list[str] = []
    for descriptor in (1, 2, 3):
        result = await world.run(f"while True: os.write({descriptor}, b'x' * 65536)", limits)
        size = max(len(result.stdout), len(result.stderr))
        found += _unless(result.status is Status.OUTPUT and size <= 100_000, result.status, size)
    return found


async def files(world: World) -> list[str]:
    found = await world.escapes(FILES)
    floods = {
        "many": "for n in range(1_000_000): open(str(n), 'w').close()",
        "deep": "for n in range(100_000): os.mkdir('d'); os.chdir('d')",
        "large": "for n in range(1000): open(str(n), 'wb').write(bytes(4 << 20))",
        "hidden": "os.mkdir('h', 0o300)\nfor n in range(1_000_000): open('h/%d' % n, 'w').close()",
    }
    for name, code in floods.items():
        result = await world.run(code, replace(Limits(), wall_s=20.0, folder_bytes=8 << 20))
        found += _unless(result.status is Status.FILES, name, result)
    return found + leftovers()


async def daemons(world: World) -> list[str]:
    code = r"""
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
attempt("setsid", lambda: os.setsid() + 1)
def twice():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True: signal.pause()
        os._exit(0)
    return "a daemon"
attempt("double fork", twice)
attempt("outlive the parent", lambda: call(157 if W["x86"] else 167, 1, 0, 0, 0, 0))
attempt("adopt", lambda: call(157 if W["x86"] else 167, 36, 1, 0, 0, 0))
"""
    found = await world.escapes(code)
    result = await world.run(code + "sys.stdout.flush()\nos.closerange(0, 64)\nwhile True: signal.pause()", SHORT)
    return found + _unless(result.status is Status.TIMEOUT, result) + leftovers()


async def descriptors(world: World) -> list[str]:
    code = r"""
def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
attempt("inherited", lambda: [number for number in range(4, 4096) if is_open(number)] or None)
attempt("the channel is for writing only", lambda: os.read(3, 1))
import fcntl, stat
attempt("its input is not for writing", lambda: os.write(0, b"x"))
attempt("its pipes are no files", lambda: [n for n in (1, 2, 3) if not stat.S_ISFIFO(os.fstat(n).st_mode)] or None)
"""
    found = await world.escapes(code)
    for spoiled in (
        "os.closerange(0, 64)",
        "os.closerange(3, 64)\nopen('p', 'w')\nprint(1)",
        "os.dup2(1, 3)\nprint(2)",
    ):
        result = await world.run(spoiled)
        found += _unless(result.status in (Status.OK, Status.ERROR, Status.MALFORMED), result)
    return found


async def planted_links(world: World) -> list[str]:
    code = r"""
os.symlink(W["home"], "home")
os.symlink(W["home"] + "/secret.txt", "secret")
os.symlink("/etc/passwd", "result.json")
os.mkdir("d")
os.symlink(W["home"], "d/home")
os.symlink("..", "d/up")
attempt("hard link", lambda: os.link(W["home"] + "/open.txt", "hard") is None)
attempt("hard link of its own", lambda: os.link("secret", "hard") is None)
"""
    return await world.escapes(code) + leftovers()


async def planted_devices(world: World) -> list[str]:
    code = r"""
import stat
attempt("fifo", lambda: os.mkfifo("fifo") is None)
attempt("device", lambda: os.mknod("device", 0o600 | stat.S_IFBLK, os.makedev(8, 0)) is None)
attempt("socket file", lambda: os.mknod("sock", 0o600 | stat.S_IFSOCK) is None)
"""
    names = r"""
open(b"\xff\xfe", "w").close()
open("new\nline", "w").close()
open("x" * 255, "w").close()
os.makedirs("a/b/c")
open("a/b/c/d", "w").close()
os.mkdir("a/b/closed", 0)
os.mkdir("closed", 0)
"""
    found = await world.escapes(code)
    result = await world.run(names)
    # the user of the harness cannot look into a closed folder, and takes that for too many files, if it looks in time
    found += _unless(result.status in (Status.OK, Status.FILES), result)
    return found + leftovers()


async def earlier_runs(world: World) -> list[str]:
    mark = "open('mark', 'w').write('sample')\n"
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        mark += f"attempt('mark', lambda: open('{place}/mark', 'w').write('x'))\n"
    first = await world.run(mark + "print(os.getcwd())")
    folder = first.stdout.splitlines()[-1]
    look = r"""
attempt("its folder is new", lambda: os.getcwd() == FIRST or os.listdir(".") or None)
for path in (FIRST, FIRST + "/mark", os.path.dirname(FIRST), OTHER):
    attempt("read", lambda: set(os.listdir(path)) - {os.path.basename(os.getcwd())} or None)
    attempt("read a file", lambda: open(path + "/mark").read())
    attempt("write", lambda: open(path + "/own", "w").write("x"))
"""
    other = Path(tempfile.mkdtemp(prefix="another-run-"))  # as another run of this moment has it
    (other / "mark").write_text(CANARY)
    try:
        names = {"FIRST": repr(folder), "OTHER": repr(str(other))}
        for name, value in names.items():
            look = look.replace(name, value)
        return World.words(first) + await world.escapes(look) + _unless(not Path(folder).exists(), folder)
    finally:
        (other / "mark").unlink()
        other.rmdir()


def leftovers() -> list[str]:
    """Processes in a folder of a run, and the folders, when no run is under way."""
    found: list[str] = []
    for pid in filter(str.isdigit, (path.name for path in Path("/proc").iterdir())):
        try:
            place = str(Path(f"/proc/{pid}/cwd").readlink())
        except OSError:
            continue
        if place.startswith(f"{tempfile.gettempdir()}/{PREFIX}"):
            found.append(f"process {pid} is left in {place}")
    return found + [str(folder) for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*")]


def _unless(held: bool, *seen: object) -> list[str]:
    return [] if held else [f"not held: {' '.join(map(str, seen))[:300]}"]


PROBES = {
    16: forks,
    17: memory,
    18: time_limits,
    19: output,
    20: files,
    21: daemons,
    22: descriptors,
    23: planted_links,
    24: planted_devices,
    30: earlier_runs,
}
