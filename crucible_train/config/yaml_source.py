"""Reading a YAML file so that every value still knows its line, and refusing all of YAML that is not plain data."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode, YAMLError
from yaml.events import AliasEvent
from yaml.reader import ReaderError

from crucible_train.config.fields import Tree, join
from crucible_train.config.sources import Given, Place, Problem

_LARGEST_BYTES = 1 << 20
_DEEPEST = 30
_STANDARD_TAG = "tag:yaml.org,2002:"
_REASONS = {
    "found character '\\t'": "a tab; indent with spaces",
    "while scanning a quoted scalar": "this quote is not closed",
    "'<stream end>'": "this bracket is not closed",
    "mapping values are not allowed here": "this colon cannot stand here; put a text that holds one in quotes",
    "could not find expected ':'": "a name without a colon after it",
    "expected <block end>": "the indentation does not match the lines above",
    "expected a single document": "a second document begins; a configuration is one",
}
"""Plain words for what PyYAML says, by a part of it; else its own words stand."""


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes only; whatever is not plain data is an error at its own line."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
        mark: Any = event.start_mark
        tag = getattr(event, "tag", None)
        if isinstance(event, AliasEvent):
            raise _not_read("an alias", mark)
        if tag is not None:
            raise _not_read(f"the tag {tag.replace(_STANDARD_TAG, '!!')}", mark)
        if self.depth >= _DEEPEST:
            raise _NotPlain(problem="nested too deeply", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _not_read("a name that is not text", key.start_mark)
            if key.value == "<<" and key.style is None:
                raise _not_read("a merge (<<)", key.start_mark)
        return node


class _NotPlain(yaml.MarkedYAMLError):
    """YAML, but more than plain data."""


def _not_read(what: str, mark: Any) -> _NotPlain:
    return _NotPlain(problem=f"{what} is not read; write the value out", problem_mark=mark)


def compose(text: str) -> Node | None:
    """The tree of nodes of one YAML document; ``None`` where it is empty.

    Raises:
        YAMLError: ``text`` is not YAML, or holds a tag or an alias.
    """
    loader = _PlainLoader(text)
    try:
        return loader.get_single_node()
    except (ValueError, OverflowError):
        raise _NotPlain(problem="an escape such as \\UFFFFFFFF names no character") from None
    finally:
        loader.dispose()


def read_file(name: str) -> MappingNode | Problem | None:
    """The top-level mapping of the file, ``None`` if the file is empty, or what is wrong with it."""
    text = _read_text(name)
    if isinstance(text, Problem):
        return text
    try:
        node = compose(text)
    except YAMLError as error:
        return _syntax_problem(name, text, error)
    if node is None or _is_null(node):
        return None
    if not isinstance(node, MappingNode):
        return Problem(place_of(node, name), "the file must hold lines of field: value, not a list or a single value")
    return node


def _read_text(name: str) -> str | Problem:
    path = Path(name).expanduser()
    place = Place(name)
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except FileNotFoundError:
        return Problem(place, f"there is no such file{_similar_file(path)}")
    except IsADirectoryError:
        return Problem(place, "this is a folder; --config takes a YAML file")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Problem(place, f"cannot be read: {reason}")
    if len(data) > _LARGEST_BYTES:
        return Problem(place, "larger than 1 MiB; is this the configuration?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return Problem(Place(name, line), "this is not UTF-8 text")


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    near = difflib.get_close_matches(path.name, sorted(names), n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def _syntax_problem(name: str, text: str, error: YAMLError) -> Problem:
    if isinstance(error, ReaderError):
        before = text[: error.position]
        place = Place(name, before.count("\n") + 1, len(before) - before.rfind("\n"))
        return Problem(place, f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed")
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(Place(name), f"not valid YAML: {error}")
    reason = " ".join(part for part in (error.context, error.problem) if part)
    is_end = "stream end" in reason or "end of stream" in reason
    mark = error.context_mark if is_end and error.context_mark else error.problem_mark
    place = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name)
    if isinstance(error, _NotPlain):
        return Problem(place, reason)
    plain = next((words for part, words in _REASONS.items() if part in reason), reason)
    return Problem(place, f"not valid YAML: {plain}")


def drop_repeated(node: Node, name: str, section: str = "") -> Iterator[Problem]:
    """Take every name that stands twice in one mapping out of ``node``, and say where both are."""
    if isinstance(node, SequenceNode):
        for item in node.value:
            yield from drop_repeated(item, name, section)
    if not isinstance(node, MappingNode):
        return
    first: dict[str, tuple[Node, Node]] = {}
    for key, value in node.value:
        path = join(section, key.value)
        if key.value in first:
            line = first[key.value][0].start_mark.line + 1
            yield Problem(place_of(key, name), f"{path}: given twice, first on line {line}")
        else:
            first[key.value] = (key, value)
            yield from drop_repeated(value, name, path)
    node.value = list(first.values())


def flatten(node: MappingNode, tree: Tree, file: str, section: str = "") -> Iterator[Given | Problem]:
    """Every value in ``node`` under its dotted name, down to the fields that ``tree`` knows."""
    for key_node, value in node.value:
        key = join(section, key_node.value)
        path = key.replace("-", "_")
        if path not in tree.branches or not path:
            yield Given(key, section, value, place_of(key_node, file))
        elif isinstance(value, MappingNode):
            yield from flatten(value, tree, file, path)
        elif not _is_null(value):
            yield Problem(place_of(key_node, file), f"{key}: {section_hint(path, tree)}")


def place_of(node: Node, file: str) -> Place:
    """The line on which ``node`` begins."""
    return Place(file, node.start_mark.line + 1)


def section_hint(path: str, tree: Tree) -> str:
    """What to write instead of a value for a whole section."""
    children = tree.children(path)
    example = f" such as {children[0].path}" if children else ""
    return f"is a section; give its fields{example}"


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value in ("", "~", "null", "Null", "NULL")
