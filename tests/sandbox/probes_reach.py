"""Probes 1 to 15: what a program tries to reach outside itself."""

from world import World

READS = r"""
home = W["home"]
behind = "/proc/%d/root/%s/secret.txt" % (W["host"], home)
for path in (home + "/secret.txt", "/etc/passwd", "/etc/shadow", "/root/.bashrc", behind):
    attempt("read " + path, lambda: open(path).read())
mounted = {os.path.basename(os.getcwd()), "ld.so.cache", "localtime", *NAMES}  # what is to be seen in namespaces
for path in (home, "/", "/home", "/root", "/etc", "/var/tmp", os.getcwd() + "/.."):
    attempt("list " + path, lambda: set(os.listdir(path)) - mounted or None)
def through(link, *rest):
    os.symlink(home, link)
    return open("/".join((link, *rest))).read()
attempt("a link in its folder", lambda: through("a", "secret.txt"))
attempt("a link of proc", lambda: through("b", "../proc/self/root", home, "secret.txt"))
def from_inside():
    os.chdir(home)
    try:
        return open("secret.txt").read()
    finally:
        os.chdir(mine)
mine = os.getcwd()
attempt("chdir", from_inside)
attempt("O_PATH", lambda: os.read(os.open("secret.txt", os.O_RDONLY, dir_fd=os.open(home, os.O_PATH)), 99))
attempt("hard link", lambda: (os.link(home + "/secret.txt", "hard"), open("hard").read())[1])
attempt("chroot", lambda: os.chroot(home))
""".replace("NAMES", "('dev', 'etc', 'launcher', 'lib', 'lib64', 'root', 'tmp', 'usr')")

WRITES = r"""
home = W["home"]
target = home + "/open.txt"
for mode in ("w", "a", "r+", "x"):
    attempt("open " + mode, lambda: open(target + ("2" if mode == "x" else ""), mode).write("x"))
attempt("truncate while reading", lambda: os.open(target, os.O_RDONLY | os.O_TRUNC))
attempt("truncate", lambda: os.truncate(target, 0) or True)
for label, act in {
    "unlink": lambda: os.unlink(target), "rename": lambda: os.rename(target, home + "/moved"),
    "rename away": lambda: os.rename(target, "taken"), "mkdir": lambda: os.mkdir(home + "/made"),
    "rmdir": lambda: os.rmdir(home + "/folder"), "symlink": lambda: os.symlink("x", home + "/link"),
    "link": lambda: os.link("/etc/hostname", home + "/hard"), "chmod": lambda: os.chmod(target, 0),
    "fchmod": lambda: os.fchmod(os.open(target, os.O_PATH), 0), "chown": lambda: os.chown(target, 1, 1),
    "utime": lambda: os.utime(target, (1, 1)), "xattr": lambda: os.setxattr(target, "user.x", b"x"),
    "mkfifo": lambda: os.mkfifo(home + "/fifo"),
    "rename in": lambda: (open("own", "w").close(), os.rename("own", home + "/own")),
}.items():
    attempt(label, lambda: act() is None or True)
"""

# only where there are walls: these are not the test's own
WRITES_ELSEWHERE = r"""
library = os.path.dirname(os.__file__)
attempt("the standard library", lambda: os.chmod(os.__file__, 0o777) is None)
for place in ("/tmp", "/var/tmp", "/dev/shm", "/", "/dev", "/usr/lib", library, os.getcwd() + "/.."):
    attempt("write in " + place, lambda: open(place + "/sandbox-probe", "w").write("x"))
"""

ENVIRONMENT = r"""
canary = W["canary"][::-1].encode()
attempt("its own", lambda: set(os.environ) or None)
attempt("names", lambda: any(name in os.environ for name in ("HOME", "PATH", "CANARY_KEY", "USER")))
for pid in ("self", os.getppid(), 1, W["host"], W["victim"]):
    attempt("environ of %s" % pid, lambda: open("/proc/%s/environ" % pid, "rb").read() or None)
environ = lambda pid: open("/proc/%s/environ" % pid, "rb").read()
attempt("all of proc", lambda: [pid for pid in os.listdir("/proc") if canary in environ(pid)])
libc.getenv.restype = ctypes.c_char_p
attempt("getenv", lambda: libc.getenv(b"CANARY_KEY"))
"""

TCP = r"""
import socket
for port in (W["tcp"], 80, 443):
    attempt("connect %d" % port, lambda: socket.create_connection(("127.0.0.1", port), 1))
attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
attempt("listen on IPv6", lambda: socket.socket(socket.AF_INET6).listen())
attempt("urllib", lambda: __import__("urllib.request").request.urlopen("http://127.0.0.1:%d" % W["tcp"], timeout=1))
"""

UDP = r"""
import socket
attempt("send", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"secret", ("127.0.0.1", W["udp"])))
if W["walls"]:  # without, the question would really leave this machine
    attempt("resolve", lambda: socket.getaddrinfo("secret.example.org", 80))
    attempt("gethostbyname", lambda: socket.gethostbyname("secret.example.org"))
for family, kind in ((2, 3), (16, 3), (17, 3), (38, 5), (40, 1), (10, 2), (31, 3), (29, 3)):
    attempt("socket %d %d" % (family, kind), lambda: call(41 if W["x86"] else 198, family, kind, 0))
"""

ABSTRACT = r"""
import socket
attempt("connect", lambda: socket.socket(socket.AF_UNIX).connect(W["abstract"]) is None)
attempt("datagram", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", W["datagrams"]))
def pair():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return one.sendto(b"x", W["datagrams"])
attempt("through a pair of datagram sockets", pair)
attempt("pass a descriptor", lambda: socket.send_fds(socket.socketpair()[0], [b"x"], [0]))
one, other = socket.socketpair()
attempt("bind a pair", lambda: one.bind("\0bound") is None)
one.send(b"x")
attempt("the pair itself works", lambda: other.recv(1) != b"x")
"""

UNIX = r"""
import socket
for path in (W["home"] + "/socket", "/run/docker.sock", "/var/run/dbus/system_bus_socket", "/dev/log"):
    attempt("connect " + path, lambda: socket.socket(socket.AF_UNIX).connect(path) is None)
attempt("bind in its folder", lambda: socket.socket(socket.AF_UNIX).bind("own.sock") is None)
"""

SIGNALS = r"""
import fcntl, signal
for pid in (W["host"], W["victim"], os.getppid(), 1, -1, 0, -W["host"]):
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        if number == 0 or pid in (W["victim"], os.getppid()):
            attempt("kill %d %d" % (pid, number), lambda: os.kill(pid, number) is None)
    attempt("group %d" % pid, lambda: os.killpg(abs(pid), 0) is None)
    attempt("pidfd %d" % pid, lambda: os.pidfd_open(abs(pid)))
attempt("tgkill", lambda: call(234 if W["x86"] else 131, W["victim"], W["victim"], 15))
attempt("sigqueue", lambda: call(129 if W["x86"] else 138, W["victim"], 15, 0))
def owner():
    read, write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETOWN, W["victim"])
    fcntl.fcntl(read, 10, signal.SIGKILL)
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
    return os.write(write, b"x")
attempt("by owning a pipe", owner)
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, W["victim"], 19) is None)
attempt("limits", lambda: __import__("resource").prlimit(W["victim"], 0, (1, 1)))
attempt("affinity", lambda: os.sched_setaffinity(W["victim"], {0}) is None)
"""

PTRACE = r"""
ptrace, read, write = (101, 310, 311) if W["x86"] else (117, 270, 271)
buffer = ctypes.create_string_buffer(64)
vector = (ctypes.c_long * 2)(ctypes.addressof(buffer), 8)
for pid in (W["host"], W["victim"], os.getppid(), 1):
    for request in (16, 0x4206, 0):
        attempt("ptrace %d %x" % (pid, request), lambda: call(ptrace, request, pid, 0, 0))
    for number in (read, write):
        attempt("memory of %d" % pid, lambda: call(number, pid, ctypes.byref(vector), 1, ctypes.byref(vector), 1, 0))
    attempt("mem of %d" % pid, lambda: open("/proc/%d/mem" % pid, "rb").read(1))
    attempt("kcmp %d" % pid, lambda: call(312 if W["x86"] else 272, pid, os.getpid(), 0, 0, 0))
    attempt("pidfd_getfd %d" % pid, lambda: call(438, 0, 1, 0))
"""

NAMESPACES = r"""
unshare, setns, mount, pivot, chroot = (272, 308, 165, 155, 161) if W["x86"] else (97, 268, 40, 41, 51)
for flag in (0x10000000, 0x20000, 0x40000000, 0x10020000, 0x80):
    attempt("unshare %x" % flag, lambda: call(unshare, flag))
    attempt("clone %x" % flag, lambda: call(56 if W["x86"] else 220, flag | 17, 0, 0, 0, 0))
    attempt("a thread with %x" % flag, lambda: call(56 if W["x86"] else 220, flag | 0x10f00, 0, 0, 0, 0))
attempt("setns", lambda: call(setns, 0, 0))
attempt("mount", lambda: call(mount, b"none", b".", b"tmpfs", 0, 0))
attempt("pivot_root", lambda: call(pivot, b".", b"."))
attempt("chroot", lambda: call(chroot, b"."))
for number in (428, 429, 430, 431, 432, 442):
    attempt("new mount call %d" % number, lambda: call(number, 0, 0, 0, 0, 0))
"""

IO_URING = r"""
parameters = ctypes.create_string_buffer(256)
attempt("io_uring_setup", lambda: call(425, 8, parameters))
attempt("io_uring_enter", lambda: call(426, 0, 1, 1, 1, 0, 0))
attempt("io_uring_register", lambda: call(427, 0, 0, 0, 0))
attempt("io_setup", lambda: call(206 if W["x86"] else 0, 8, parameters))
"""

KERNEL = r"""
names = {"seccomp": (317, 277), "bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217), "perf": (298, 241),
    "userfaultfd": (323, 282), "memfd_create": (319, 279), "open_by_handle_at": (304, 265), "fanotify": (300, 262),
    "inotify": (294, 26), "init_module": (175, 105), "kexec": (246, 104), "shmget": (29, 194), "msgget": (68, 186),
    "mq_open": (240, 180), "timer_create": (222, 107), "personality": (135, 92), "swapon": (167, 224),
    "syslog": (103, 116), "prctl": (157, 167), "move_pages": (279, 239), "vmsplice": (278, 75), "acct": (163, 89),
    "name_to_handle_at": (303, 264)}
for name, numbers in names.items():
    attempt(name, lambda: call(numbers[0 if W["x86"] else 1], 1, 0, 0, 0, 0))
for number in (435, 437, 424, 434, 443, 444, 446, 447, 448, 452, 454, 460, 463, 470, 999):
    attempt("call %d" % number, lambda: call(number, 0, 0, 0, 0, 0))
"""

TERMINAL = r"""
import fcntl
for descriptor in (0, 1, 2):
    for name, request in (("TIOCSTI", 0x5412), ("TIOCSCTTY", 0x540e), ("TIOCLINUX", 0x541c), ("TIOCSPGRP", 0x5410)):
        attempt(name, lambda: call(16 if W["x86"] else 29, descriptor, request, b"x"))
    attempt("TIOCSTI with high bits", lambda: call(16 if W["x86"] else 29, descriptor, 0x5412 | 1 << 32, b"x"))
attempt("tty", lambda: open("/dev/tty", "w"))
attempt("pty", lambda: os.openpty())
"""

SETUID = r"""
import subprocess
for path in ("/usr/bin/su", "/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/usr/bin/sudo", "/bin/true"):
    attempt("run " + path, lambda: subprocess.run([path, "--help"]).returncode + 1)
    attempt("become " + path, lambda: os.execv(path, [path]))
attempt("its own script", lambda: (open("x", "w").write("#!/bin/true"), os.execv("./x", ["x"])))
attempt("root", lambda: os.setuid(0) is None)
attempt("another user", lambda: os.setresuid(1, 1, 1) is None)
attempt("groups", lambda: os.setgroups([0]) is None)
attempt("capset", lambda: call(126 if W["x86"] else 91, 0, 0))
"""

KERNEL_FILES = r"""
for path in ("/proc/self/cmdline", "/proc/self/maps", "/proc/mounts", "/proc/version", "/proc/%d/cmdline" % W["host"],
             "/proc/sys/kernel/hostname", "/etc/hostname", "/etc/machine-id", "/proc/cpuinfo",
             "/sys/class/dmi/id/product_uuid"):
    attempt(path, lambda: open(path).read())
for path in ("/proc", "/sys", "/sys/class/net", "/proc/self/fd"):
    attempt(path, lambda: os.listdir(path))
for pid in (W["host"], W["victim"], os.getppid(), 1):
    attempt("links of %d" % pid, lambda: [os.readlink("/proc/%d/%s" % (pid, name)) for name in ("exe", "cwd", "root")])
buffer = ctypes.create_string_buffer(390)
attempt("uname", lambda: call(63 if W["x86"] else 160, buffer))
attempt("gethostname", lambda: __import__("socket").gethostname())
attempt("os.uname", lambda: os.uname().nodename == W["hostname"])
attempt("platform works", lambda: __import__("platform").system() != "Linux")
"""

_CODES = {
    1: READS,
    3: ENVIRONMENT,
    4: TCP,
    5: UDP,
    6: ABSTRACT,
    7: UNIX,
    8: SIGNALS,
    9: PTRACE,
    10: NAMESPACES,
    11: IO_URING,
    12: KERNEL,
    13: TERMINAL,
    14: SETUID,
    15: KERNEL_FILES,
}


async def _writes(world: World) -> list[str]:
    return await world.escapes(WRITES + (WRITES_ELSEWHERE if world.sandbox.layers.confines else ""))


def _probe(code: str):
    async def run(world: World) -> list[str]:
        return await world.escapes(code)

    return run


PROBES = {number: _probe(code) for number, code in _CODES.items()} | {2: _writes}
