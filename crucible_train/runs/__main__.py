"""The command that looks after run directories: ``python -m crucible_train.runs``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crucible_train import files, terminal
from crucible_train.errors import CrucibleError
from crucible_train.report.conversations import visible
from crucible_train.runs import keeping
from crucible_train.runs.comparing import comparison, show_comparison
from crucible_train.runs.reading import find_run, find_runs
from crucible_train.runs.showing import show_list, show_run


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the words say; the exit status."""
    try:
        _do(_parser().parse_args(argv))
    except (CrucibleError, OSError) as error:
        sys.stderr.write(f"error: {visible(' '.join(str(error).splitlines()))}\n")
        return error.exit_status if isinstance(error, CrucibleError) else 2
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = terminal.WordParser(
        prog="python -m crucible_train.runs",
        description="List, show, compare, tag and delete runs; COMMAND --help tells of each.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    listed = commands.add_parser("list", help="a line for every run, the newest last")
    listed.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("runs"), help="default: runs")

    one = terminal.WordParser(add_help=False)
    one.add_argument("run", metavar="RUN", help="the id of a run, or its folder")
    many = terminal.WordParser(add_help=False)
    many.add_argument("runs", metavar="RUN", nargs="+", help="the id of a run, or its folder")
    place = terminal.WordParser(add_help=False)
    place.add_argument(
        "--folder", metavar="FOLDER", type=Path, default=Path("runs"), help="where ids are looked for; default: runs"
    )
    commands.add_parser("show", parents=[one, place], help="all that is known of one run")
    for name, what in (("tag", "add tags to a run"), ("untag", "take tags from a run")):
        words = commands.add_parser(name, parents=[one, place], help=what)
        words.add_argument("tags", metavar="TAG", nargs="+", help="a word")
    compared = commands.add_parser(
        "compare", parents=[many, place], help="where runs differ in configuration, and in what came of them"
    )
    compared.add_argument("--html", metavar="FILE", type=Path, help="write a page with curves to this file")
    deleted = commands.add_parser(
        "delete",
        parents=[many, place],
        help="delete run directories; what trackers hold of them stays",
    )
    deleted.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _do(wanted: argparse.Namespace) -> None:
    match wanted.command:
        case "list":
            show_list(find_runs(wanted.folder), wanted.folder)
        case "show":
            show_run(find_run(wanted.run, wanted.folder))
        case "compare":
            _compare(wanted)
        case "tag":
            keeping.tag(find_run(wanted.run, wanted.folder), wanted.tags)
        case "untag":
            keeping.untag(find_run(wanted.run, wanted.folder), wanted.tags)
        case "delete":
            keeping.delete(wanted.runs, wanted.folder, is_sure=wanted.yes)


def _compare(wanted: argparse.Namespace) -> None:
    found = comparison([find_run(name, wanted.folder) for name in wanted.runs])
    show_comparison(found)
    if wanted.html is not None:
        from crucible_train.runs.page import page  # noqa: PLC0415 - only curves need matplotlib

        files.write_text(wanted.html, page(found))
        terminal.field("written", str(wanted.html))


if __name__ == "__main__":
    sys.exit(main())
