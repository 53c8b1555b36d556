"""JSON and JSON Lines, read strictly: every line is a row or a problem with its place; none is passed over."""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from crucible_train.ports import SourceRow

_SNIPPET_CHARACTERS = 40
_BOM = b"\xef\xbb\xbf"
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def json_lines(file: IO[bytes], name: str) -> Iterator[SourceRow]:
    """One row a line; blank lines are no rows."""
    for number, raw in enumerate(file, start=1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if line.strip():
            yield _row(line, name, number)


def json_document(file: IO[bytes], name: str) -> Iterator[SourceRow]:
    """A list of rows, an object that holds one such list, one row, or, whatever the file is called, JSON Lines."""
    data = file.read().removeprefix(_BOM)
    if not data.strip():
        return
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
    except (ValueError, RecursionError) as error:
        yield SourceRow(f"{name}:1", None, _unusable(error))
        return
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        if len(lists) != 1 or _is_conversation(lists[0]):
            yield _checked(f"{name}:1", value, text)
            return
        value = lists[0]
    if not isinstance(value, list):
        yield SourceRow(f"{name}:1", None, f"a list of rows is needed, not {_kind(value)}")
        return
    for number, row in enumerate(value, start=1):
        yield _checked(f"{name} row {number}", row, text)


def _row(line: bytes, name: str, number: int) -> SourceRow:
    where = f"{name}:{number}"
    try:
        text = line.decode().rstrip("\r\n")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        return _not_utf8(f"{where}:{error.start + 1}", line, error)
    except json.JSONDecodeError as error:
        return _broken(f"{where}:{error.colno}", text, error)
    except (ValueError, RecursionError) as error:
        return SourceRow(where, None, _unusable(error))
    return _checked(where, value, text)


def _checked(where: str, value: Any, text: str) -> SourceRow:
    """The row, if it is an object whose every text can be written as UTF-8; ``text`` is what it was read from."""
    if not isinstance(value, dict):
        return SourceRow(where, None, f"a row must be an object, not {_kind(value)}")
    if _HALF_CHARACTER.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            return SourceRow(where, None, f"{half} is half of a surrogate pair, and the other half is missing")
    return SourceRow(where, value)


def _unusable(error: Exception) -> str:
    """Why correct JSON cannot be read."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


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
    except (ValueError, RecursionError):
        return False


def _is_conversation(entries: list[Any]) -> bool:
    """Whether a list holds messages, not rows."""
    return all(isinstance(entry, dict) and ("role" in entry or "from" in entry) for entry in entries)


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")
