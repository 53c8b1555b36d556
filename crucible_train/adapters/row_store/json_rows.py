"""JSON and JSON Lines, read strictly: every line is a row or a problem with its place; none is passed over."""

import json
from collections.abc import Iterator
from typing import IO

from crucible_train.ports import SourceRow

_SNIPPET_CHARACTERS = 40
_BOM = b"\xef\xbb\xbf"


def json_lines(file: IO[bytes], name: str) -> Iterator[SourceRow]:
    """One row a line; blank lines are no rows."""
    for number, raw in enumerate(file, start=1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if line.strip():
            yield _row(line, name, number)


def json_document(file: IO[bytes], name: str) -> Iterator[SourceRow]:
    """A list of rows, an object that holds one such list, or, whatever the file is called, JSON Lines."""
    data = file.read().removeprefix(_BOM)
    try:
        text = data.decode()
        value = json.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        yield _not_utf8(f"{name}:{line}:{column}", data, error)
        return
    except json.JSONDecodeError as error:
        lines = data.splitlines()
        if len(lines) > 1 and _is_object(lines[0]):
            yield from json_lines(iter(lines), name)  # type: ignore[arg-type]
        else:
            yield _broken(f"{name}:{error.lineno}:{error.colno}", text, error)
        return
    if isinstance(value, dict):
        lists = [key for key, entry in value.items() if isinstance(entry, list)]
        if len(lists) != 1:
            yield (
                SourceRow(f"{name}:1", value)
                if lists == []
                else SourceRow(
                    f"{name}:1",
                    None,
                    f"the object holds several lists ({', '.join(lists)}); one list of rows is needed",
                )
            )
            return
        value = value[lists[0]]
    if not isinstance(value, list):
        yield SourceRow(f"{name}:1", None, f"a list of rows is needed, not {_kind(value)}")
        return
    for number, row in enumerate(value, start=1):
        where = f"{name} row {number}"
        yield (
            SourceRow(where, row)
            if isinstance(row, dict)
            else SourceRow(where, None, f"a row must be an object, not {_kind(row)}")
        )


def _row(line: bytes, name: str, number: int) -> SourceRow:
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return _not_utf8(f"{name}:{number}:{error.start + 1}", line, error)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return _broken(f"{name}:{number}:{error.colno}", text, error)
    except RecursionError:
        return SourceRow(f"{name}:{number}", None, "nested too deeply")
    if not isinstance(value, dict):
        return SourceRow(f"{name}:{number}", None, f"a row must be an object, not {_kind(value)}")
    return SourceRow(f"{name}:{number}", value)


def _broken(where: str, text: str, error: json.JSONDecodeError) -> SourceRow:
    problem = error.msg[0].lower() + error.msg[1:].removesuffix(" at").removesuffix(" starting")
    start = max(0, error.pos - _SNIPPET_CHARACTERS // 2)
    return SourceRow(where, None, f"broken JSON: {problem}", text[start : start + _SNIPPET_CHARACTERS])


def _not_utf8(where: str, data: bytes, error: UnicodeDecodeError) -> SourceRow:
    start = max(0, error.start - _SNIPPET_CHARACTERS // 2)
    snippet = data[start : error.start + _SNIPPET_CHARACTERS // 2].decode(errors="replace").strip()
    return SourceRow(where, None, f"not UTF-8: byte 0x{data[error.start]:02x}", snippet)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")
