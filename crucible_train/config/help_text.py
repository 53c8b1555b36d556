"""What ``--help`` and ``--help-all`` print: every field, from its own declaration."""

import textwrap
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from crucible_train.config.aliases import OTHER_NAMES
from crucible_train.config.fields import REQUIRED, Leaf, Tree, members
from crucible_train.config.plain_words import allowed
from crucible_train.config.writing import as_text

_COLUMNS = 110
_LINES = 60
_WIDEST_FIELD = 46
_EXAMPLE_WORDS = {
    "dataset": "dataset=rows.jsonl",
    "train.learning_rate": "learning_rate=1e-4",
    "train.max_steps": "max_steps=10",
}


def short_help(tree: Tree, prog: str) -> str:
    """At most 60 lines of at most 110 columns; where there are too many fields, some share lines with the advanced."""
    described = {leaf.path for leaf in tree.leaves.values() if not leaf.advanced}
    lines = _short_lines(tree, prog, described)
    while len(lines) > _LINES and described:
        described.discard(_least_needed(tree, described))
        lines = _short_lines(tree, prog, described)
    return "\n".join(lines)


def full_help(tree: Tree, prog: str) -> str:
    """Every field with its default, meaning, what it accepts, and the names that other tools have for it."""
    lines = [*_head(tree, prog), ""]
    for branch in tree.branches.values():
        leaves = tree.children(branch.path)
        if branch.path and leaves:
            lines += ["", f"{branch.path}: {branch.description}"]
        for leaf in leaves:
            lines += [f"  {leaf.path}={default_text(leaf)}", *_details(leaf, tree)]
    return "\n".join(lines)


def default_text(leaf: Leaf) -> str:
    """The default as one would write it."""
    return "REQUIRED" if leaf.default is REQUIRED else as_text(leaf.default, leaf.annotation)


def _head(tree: Tree, prog: str) -> list[str]:
    name = prog.rpartition(".")[2].split()[-1]
    words = [word for path, word in _EXAMPLE_WORDS.items() if path in tree.leaves]
    summary = tree.branches[""].description.partition("\n")[0]
    return [
        f"Usage: {prog} [--config FILE.yaml] [field=value | --field value ...]",
        summary,
        "",
        "  --config FILE  YAML with the fields below; a field=value on the command line beats it",
        "  --dry-run      print the resolved configuration and the plan, and run nothing",
        "  --help-all     what each field accepts, and other tools' names for it; --schema: JSON schema for editors",
        "Exit status: 0 done; 1 the run failed; 2 the input is wrong; 130 after Ctrl-C, 143 after TERM, both saved.",
        f"Examples: {prog} {' '.join(words[:2])}",
        f"          {prog} --config {name}.yaml --dry-run {' '.join(words[2:])}".rstrip(),
        "",
        "Fields, with their defaults; the section may be left out where a name is unique (lists: [a, b] or a,b):",
    ]


def _short_lines(tree: Tree, prog: str, described: set[str]) -> list[str]:
    lines = _head(tree, prog)
    shown = [leaf for leaf in tree.leaves.values() if leaf.path in described]
    width = min(max((len(_assignment(leaf)) for leaf in shown), default=0), _WIDEST_FIELD)
    for branch in tree.branches.values():
        leaves = tree.children(branch.path)
        if branch.path and leaves:
            lines.append(_clip(f"{branch.path}: {branch.description}", _COLUMNS))
        lines += [_line(leaf, width) for leaf in leaves if leaf.path in described]
        lines += _shared_lines(leaf for leaf in leaves if leaf.path not in described)
    return lines


def _assignment(leaf: Leaf) -> str:
    return _clip(f"{leaf.name}={default_text(leaf)}", _COLUMNS - 4)


def _line(leaf: Leaf, width: int) -> str:
    start = f"  {_assignment(leaf):{width}}  "
    choices = [choice for kind in members(leaf.annotation) if get_origin(kind) is Literal for choice in get_args(kind)]
    with_choices = f"{leaf.description} ({', '.join(str(choice) for choice in choices)})"
    fits = choices and len(start + with_choices) <= _COLUMNS
    return (start + (with_choices if fits else _clip(leaf.description, _COLUMNS - len(start)))).rstrip()


def _shared_lines(leaves: Iterator[Leaf]) -> list[str]:
    """As many fields to a line as fit, none broken in two."""
    lines: list[str] = []
    for leaf in leaves:
        assignment = _assignment(leaf)
        if lines and len(lines[-1]) + 2 + len(assignment) <= _COLUMNS:
            lines[-1] += f"  {assignment}"
        else:
            lines.append(f"  {assignment}")
    return lines


def _least_needed(tree: Tree, described: set[str]) -> str:
    """The last described field of the section that has the most of them."""
    rows = {branch: [leaf.path for leaf in tree.children(branch) if leaf.path in described] for branch in tree.branches}
    return max(rows.values(), key=len)[-1]


def _clip(text: str, columns: int) -> str:
    """``text`` up to its last clause that fits, or cut with three dots where not even the first one does."""
    if len(text) <= columns:
        return text
    for mark in ("; ", ", "):
        clause = text[: columns + 1].rpartition(mark)[0]
        if len(clause) > columns // 3:
            return clause
    return text[: max(columns - 3, 0)] + "..."


def _details(leaf: Leaf, tree: Tree) -> list[str]:
    accepts = f"Takes {allowed(leaf.annotation, leaf.metadata)}."
    names = [other.name for other in OTHER_NAMES.values() if other.target(tree) == leaf.path]
    also = f" Other tools: {', '.join(names)}." if names else ""
    description = leaf.description[:1].upper() + leaf.description[1:]
    margin = " " * 6
    return textwrap.wrap(f"{description}. {accepts}{also}", _COLUMNS, initial_indent=margin, subsequent_indent=margin)


__all__ = ["default_text", "full_help", "short_help"]
