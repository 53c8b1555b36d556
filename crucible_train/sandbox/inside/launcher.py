"""The launcher: what the fresh interpreter runs, before and around the untrusted program.

It is imported from its own folder, by its compiled form, and imports nothing of this package and little else: each
import costs every run. It confines its own process for good, says ``ready`` on the channel, and runs the program
in place: no second interpreter has to start, so the program needs no right to execute anything. Nothing written to the
channel after ``ready`` is to be believed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than starting the interpreter
    from typing import Any

CHANNEL = 3  # the descriptor results go to
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_KEEPCAPS, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 4, 8, 22, 38
_CAPABILITY_VERSION, _DAC_READ_SEARCH = 0x20080522, 1 << 2


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _PathBeneath(ctypes.Structure):
    """``struct landlock_path_beneath_attr``."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _Kernel:
    """System calls that raise what they fail with."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None, use_errno=True)

    def call(self, what: str, number: int, *arguments: Any) -> int:
        words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
        return self.checked(what, self.library.syscall(ctypes.c_long(number), *words))

    def prctl(self, what: str, option: int, *arguments: Any) -> None:
        words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments]
        words += [ctypes.c_ulong(0)] * (4 - len(words))
        self.checked(what, self.library.prctl(option, *words))

    @staticmethod
    def checked(what: str, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")
        return result


def confine(kernel: _Kernel, request: dict[str, Any]) -> None:
    """Give up, for good and in this order: identity, capabilities, new privileges, files, the parent's death, calls."""
    ruleset = _landlock_rules(kernel, request) if request["landlock"] else -1
    if request["uid"] is not None:
        _become(kernel, request["uid"], keep_read=request["keep_read"])
    if request["capset"] is not None:
        _drop_capabilities(kernel, request["capset"], keep_read=request["keep_read"])
    for name, value in request["rlimits"].items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    _write_files(request["files"])
    if request["is_linux"]:
        kernel.prctl("no_new_privs", _SET_NO_NEW_PRIVS, 1)
        kernel.prctl("dumpable", _SET_DUMPABLE, 0)
    if ruleset >= 0:
        kernel.call("landlock_restrict_self", request["landlock"]["restrict"], ruleset, request["landlock"]["flags"])
        os.close(ruleset)
    if request["is_linux"]:
        kernel.prctl("pdeathsig", _SET_PDEATHSIG, 9)
    if _reader_is_gone():
        os._exit(1)  # the parent died before the line above could notice
    if request["seccomp"]:
        instructions = bytes.fromhex(request["seccomp"])
        program = _Program(len(instructions) // 8, instructions)
        kernel.prctl("seccomp", _SET_SECCOMP, 2, ctypes.byref(program))


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(CHANNEL, select.POLLERR)
    return bool(poll.poll(0))


def _landlock_rules(kernel: _Kernel, request: dict[str, Any]) -> int:
    rules = request["landlock"]
    attributes = bytes.fromhex(rules["attributes"])
    ruleset = kernel.call("landlock_create_ruleset", rules["create"], attributes, len(attributes), 0)
    for path, access in rules["paths"]:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            access &= rules["file_rights"]
        rule = _PathBeneath(access & rules["handled"], beneath)
        kernel.call(f"landlock_add_rule {path}", rules["add"], ruleset, 1, ctypes.byref(rule), 0)
        os.close(beneath)
    return ruleset


def _become(kernel: _Kernel, uid: int, *, keep_read: bool) -> None:
    if keep_read:
        kernel.prctl("keepcaps", _SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _drop_capabilities(kernel: _Kernel, number: int, *, keep_read: bool) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    kept = _DAC_READ_SEARCH if keep_read else 0
    sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable: low words, high words
    kernel.call("capset", number, ctypes.byref(header), ctypes.byref(sets))


def _write_files(files: dict[str, str]) -> None:
    """Lay the program's files, whose bytes come as Latin-1 text, into its folder."""
    for name, content in files.items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)  # noqa: PTH103, PTH120 - pathlib costs 5 ms
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123
            file.write(content.encode("latin-1"))


class _Channel:
    """Lines ``NONCE KIND ...`` on the result descriptor."""

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce.encode()

    def send(self, kind: str, text: str = "") -> None:
        line = b"%s %s %s\n" % (self._nonce, kind.encode(), text.encode("utf-8", "backslashreplace"))
        while line:
            line = line[os.write(CHANNEL, line) :]


_ESCAPES = {code: f"\\u{code:04x}" for code in range(32)} | {ord('"'): '\\"', ord("\\"): "\\\\"}


class TooLarge(Exception):
    """A returned value has more JSON than may come back."""


class _Json:
    """JSON text of one value, up to a number of characters. The json module would cost every run 9 ms."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._parts: list[str] = []

    def text(self, value: Any) -> str:
        """A ``TypeError`` for what JSON has no form for."""
        self._value(value)
        return "".join(self._parts)

    def _add(self, text: str) -> None:
        self._left -= len(text)
        if self._left < 0:
            raise TooLarge
        self._parts.append(text)

    def _value(self, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            self._items("[", value, "]")
        elif isinstance(value, dict):
            self._items("{", value.items(), "}", pairs=True)
        elif isinstance(value, str):
            if len(value) > self._left:
                raise TooLarge
            self._add('"' + str.translate(value, _ESCAPES) + '"')
        else:
            self._add(_scalar(value))

    def _items(self, begin: str, items: Any, end: str, *, pairs: bool = False) -> None:
        self._add(begin)
        comma = ""
        for item in items:
            self._add(comma)
            comma = ","
            if pairs:
                key, item = item
                self._value(key if isinstance(key, str) else _scalar(key))
                self._add(":")
            self._value(item)
        self._add(end)


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        text = float.__repr__(value)
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(text, text)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _named(space: dict[str, Any], name: str) -> Any:
    """The function of this name; of ``Class.method``, the method of a new instance."""
    first, *rest = name.split(".")
    found = space[first]
    for part in rest:
        found = getattr(found() if isinstance(found, type) else found, part)
    return found


def _compiled(source: str) -> Any:
    """The program, or a SyntaxError: for a NUL, which Python 3.11 up to .3 calls a ValueError, too."""
    if "\0" in source:
        raise SyntaxError("source code string cannot contain null bytes")
    return compile(source, "main.py", "exec")


def _answer(channel: _Channel, function: Any, calls: list[Any], value_bytes: int) -> None:
    for index, (arguments, keywords) in enumerate(calls):
        try:
            text = _Json(value_bytes).text(function(*arguments, **keywords))
            if len(text.encode("utf-8", "backslashreplace")) > value_bytes:
                raise TooLarge
        except BaseException as problem:  # noqa: BLE001 - whatever the code under test raises is its answer
            channel.send(f"raised {index}", type(problem).__name__)
        else:
            channel.send(f"value {index}", text)


class _Scanning:
    """What the json module's scanner is told; without the module, whose import would cost every run 9 ms."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = float  # Infinity, -Infinity, NaN

    def __init__(self) -> None:
        self.memo: dict[str, str] = {}


def _read_request(descriptor: int) -> dict[str, Any]:
    with open(descriptor, encoding="ascii") as file:
        text = file.read()
    try:
        from _json import make_scanner  # noqa: PLC0415
    except ImportError:
        import json  # noqa: PLC0415

        request: dict[str, Any] = json.loads(text)
        return request
    request, _ = make_scanner(_Scanning())(text, 0)  # type: ignore[arg-type] # it asks for these names only
    return request


def main(request_fd: int, channel_fd: int) -> None:
    """Read the request, confine this process, run the program."""
    request = _read_request(request_fd)
    if channel_fd != CHANNEL:
        os.dup2(channel_fd, CHANNEL)
    os.closerange(CHANNEL + 1, 1 << 20)
    channel = _Channel(request["nonce"])
    try:
        confine(_Kernel(), request)
    except BaseException as problem:  # noqa: BLE001 - the parent raises it
        channel.send("fault", f"{type(problem).__name__}: {problem}".replace("\n", " "))
        os._exit(1)
    # the system call is denied, as it tells the machine's name; libraries still ask
    names = os.uname_result(("Linux", "sandbox", request["release"], "", request["machine"]))
    os.uname = lambda: names
    os.environ.clear()
    module = type(sys)("__main__")
    sys.modules["__main__"], sys.argv = module, ["main.py"]
    sys.path[:0] = [os.getcwd(), *request["import_paths"]]  # noqa: PTH109
    channel.send("ready")
    try:
        exec(_compiled(request["source"]), module.__dict__)  # noqa: S102 - the purpose of it all
        if request["function"]:
            _answer(channel, _named(module.__dict__, request["function"]), request["calls"], request["value_bytes"])
    except SystemExit:
        raise
    except BaseException as problem:  # noqa: BLE001
        channel.send("raised -", type(problem).__name__)
        problem = problem.with_traceback(problem.__traceback__ and problem.__traceback__.tb_next)
        sys.__excepthook__(type(problem), problem, problem.__traceback__)
        sys.exit(1)
