"""The filter on both architectures, folders that resist removal, equality of values."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_train.sandbox.folder import fresh_folder, remove, usage
from crucible_train.sandbox.seccomp import bpf
from crucible_train.sandbox.syscalls import ARCHITECTURES
from crucible_train.sandbox.verdicts import same

ALLOW, DENIED, ABSENT, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000


def _answer(architecture: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the kernel's machine does with the filter."""
    audit = ARCHITECTURES[architecture].audit if audit is None else audit
    data = struct.pack("<iIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", bpf(ARCHITECTURES[architecture])))
    at = accumulator = 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x06:
            return value
        else:
            holds = accumulator == value if operation == 0x15 else accumulator >= value
            at += yes if holds else no


# number on x86-64 and on aarch64, arguments, answer
CALLS = [
    ("read", 0, 63, (), ALLOW),
    ("socket", 41, 198, (2, 1, 0), DENIED),
    ("execve", 59, 221, (), DENIED),
    ("kill", 62, 129, (), DENIED),
    ("ptrace", 101, 117, (), DENIED),
    ("a fork", 56, 220, (17,), DENIED),
    ("a thread", 56, 220, (0x3D0F00,), ALLOW),
    ("a thread in a new user namespace", 56, 220, (0x3D0F00 | 0x10000000,), DENIED),
    ("clone3", 435, 435, (), ABSENT),
    ("a call of the future", 600, 600, (), ABSENT),
    ("openat to read", 257, 56, (0, 0, 0), ALLOW),
    ("openat to write", 257, 56, (0, 0, 0o1101), ALLOW),
    ("openat to read and truncate", 257, 56, (0, 0, 0o1000), DENIED),
    ("isatty", 16, 29, (0, 0x5401), ALLOW),
    ("TIOCSTI", 16, 29, (0, 0x5412), DENIED),
    ("TIOCSTI behind high bits", 16, 29, (0, 0x5412 | 1 << 40), DENIED),
    ("a pair of streams", 53, 199, (1, 1 | 0o2004000), ALLOW),
    ("a pair of datagrams", 53, 199, (1, 2), DENIED),
    ("a pair of another family", 53, 199, (2, 1), DENIED),
    ("send", 44, 206, (0, 0, 0, 0, 0), ALLOW),
    ("send to", 44, 206, (0, 0, 0, 0, 8), DENIED),
    ("send to a high address", 44, 206, (0, 0, 0, 0, 8 << 32), DENIED),
    ("its limits", 302, 261, (0,), ALLOW),
    ("the limits of another", 302, 261, (7,), DENIED),
    ("the thread's name", 157, 167, (15,), ALLOW),
    ("a life after the parent's", 157, 167, (1,), DENIED),
    ("the owner of a pipe", 72, 25, (0, 8), DENIED),
]


@pytest.mark.parametrize(
    ("x86", "arm", "arguments", "answer"), [call[1:] for call in CALLS], ids=[call[0] for call in CALLS]
)
def test_the_filter_answers_alike_on_both_architectures(
    x86: int, arm: int, arguments: tuple[int, ...], answer: int
) -> None:
    assert _answer("x86_64", x86, *arguments) == answer
    assert _answer("aarch64", arm, *arguments) == answer


def test_other_architectures_and_x32_are_killed() -> None:
    assert _answer("x86_64", 0, audit=0x40000003) == KILL  # i386
    assert _answer("x86_64", 0, audit=ARCHITECTURES["aarch64"].audit) == KILL
    assert _answer("aarch64", 63, audit=0x40000028) == KILL  # 32-bit ARM
    assert _answer("x86_64", 0x40000000) == KILL
    assert _answer("x86_64", 0xFFFFFFFF - (1 << 32)) == KILL


def test_a_folder_goes_whatever_is_in_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with fresh_folder(None) as folder:
        (folder / "link").symlink_to(outside)
        os.mkfifo(folder / "fifo")
        (folder / "closed" / "inner").mkdir(parents=True)
        (folder / "closed" / "inner" / "file").touch()
        for path in (folder / "closed" / "inner", folder / "closed"):
            path.chmod(0)
        here = Path.cwd()
        os.chdir(folder)
        try:
            for _ in range(1100):  # deeper than a path can be long, or recursion deep
                Path("deep").mkdir()
                os.chdir("deep")
        finally:
            os.chdir(here)
        assert usage(folder, 100)[0] == 101
    assert not folder.exists()
    assert (outside / "kept").read_text() == "kept"
    remove(folder)  # once more: nothing to do


def test_usage_counts_entries_and_bytes_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(100_000))
    (tmp_path / "link").symlink_to("/")
    entries, held = usage(tmp_path, 100)
    assert entries == 4
    assert held >= 100_000


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        (1, 1, True),
        (1, 1.0000000001, True),
        (0.1 + 0.2, 0.3, True),
        (1e-7, 0.0, False),
        (1e-7, 5e-7, False),
        (0.1 + 0.2 - 0.3, 0.0, True),
        (1_000_000.5, 1_000_000, True),
        (1, 2, False),
        (10**400, 1.0, False),
        (2**70, 2**70 + 1, False),
        (True, 1, False),
        (1, True, False),
        (None, None, True),
        (None, False, False),
        ("a", "a", True),
        ("1", 1, False),
        ([1, [2]], [1, [2]], True),
        ([1], [1, 2], False),
        ({"a": 1.0}, {"a": 1}, True),
        ({"a": 1}, {"b": 1}, False),
        (float("nan"), float("nan"), True),
        (float("nan"), 1.0, False),
        (float("inf"), float("inf"), True),
        ([], {}, False),
    ],
)
def test_equality_of_values(value: object, expected: object, equal: bool) -> None:
    assert same(value, expected) is equal


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON)
def test_what_the_launcher_writes_reads_back_as_it_was(value: object) -> None:
    import json

    from crucible_train.sandbox.inside.launcher import _Json

    text = _Json(1 << 20).text(value).encode("utf-8", "backslashreplace").decode()
    assert json.loads(text) == value
