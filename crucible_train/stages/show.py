"""Look at rows as a model will see them, before anything is trained.

python -m crucible_train.renderers.show FILE [--renderer NAME] [--model FOLDER | --tokenizer FOLDER]
    [--train-on WHAT] [--options JSON] [--row N] [--html OUT]
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from rich.text import Text

from crucible_train import files, terminal, wiring
from crucible_train.data.comparisons import SUPERVISED, read_dialogue
from crucible_train.data.conversations import Format
from crucible_train.errors import ConfigError, CrucibleError, DataError, RenderError
from crucible_train.ports import SourceRow
from crucible_train.renderers import (
    FastTokenizer,
    Renderer,
    TrainOnWhat,
    find_renderer,
    get_renderer,
    list_renderers,
    renderer_for,
)
from crucible_train.renderers.view import shown_tokens
from crucible_train.report.conversations import (
    ShownFormat,
    ShownRow,
    coloured,
    colourless,
    described,
    num_tokens,
    num_trained,
    page,
    visible,
)
from crucible_train.stages.prepare_data import source_of
from crucible_train.stages.prepare_model import BUILT_IN, at_hand, description_of

_NUM_SHOWN = 3
_NUM_IN_A_PAGE = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Show rows; the exit status."""
    try:
        _show(_parser().parse_args(argv))
    except (CrucibleError, OSError) as error:
        lines = error.problems if isinstance(error, ConfigError) else [" ".join(str(error).splitlines())]
        for line in lines:
            sys.stderr.write(f"error: {visible(line)}\n")
        return error.exit_status if isinstance(error, CrucibleError) else 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = terminal.WordParser(
        prog="python -m crucible_train.renderers.show",
        description="Show rows as a model will see them: every token, and which of them are trained.",
    )
    parser.add_argument("file", metavar="FILE", help="rows: whatever the field dataset takes")
    known = ", ".join(list_renderers())
    parser.add_argument(
        "--renderer", metavar="NAME", help=f"chat format; the model's own where it is left out: {known}"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default=BUILT_IN, help="the model that is to be trained; the built-in one at first")
    source.add_argument("--tokenizer", metavar="FOLDER", help="a folder to take nothing but the tokenizer from")
    parser.add_argument(
        "--train-on", metavar="WHAT", default=TrainOnWhat.ALL_ASSISTANT_MESSAGES, help=", ".join(TrainOnWhat)
    )
    parser.add_argument("--options", metavar="JSON", default="{}", help="options of the renderer, as a JSON object")
    parser.add_argument(
        "--row", metavar="N", type=int, help=f"this row only, counted from 1; else the first {_NUM_SHOWN}"
    )
    parser.add_argument(
        "--html", metavar="OUT", type=Path, help=f"write a page to this file; the first {_NUM_IN_A_PAGE} rows"
    )
    return parser


def _show(wanted: argparse.Namespace) -> None:
    if wanted.row is not None and wanted.row < 1:
        raise ConfigError(f"--row: {wanted.row} is asked for, but rows count from 1")
    train_on = TrainOnWhat(wanted.train_on)
    name, renderer = _renderer(wanted)
    found, form = _rows(wanted)
    rows = [_shown(row, form, renderer, train_on) for row in found]
    if not any(row.examples for row in rows):
        raise DataError(f"{rows[0].where}: {rows[0].problem}")
    shown = _format(name, renderer, rows, train_on)
    if wanted.html is None:
        _print(shown, rows, is_one=wanted.row is not None)
        return
    files.write_text(wanted.html, page(shown, rows, f"{Path(wanted.file).name} as {name} writes it"))
    terminal.field("written", str(wanted.html))


def _renderer(wanted: argparse.Namespace) -> tuple[str, Renderer]:
    options = _options(wanted.options)
    given = None if wanted.renderer == "auto" else wanted.renderer
    name = find_renderer(given) if given is not None else None
    if given is not None and name is None:
        raise ConfigError(f"--renderer: {given!r} is unknown; known are auto, {', '.join(list_renderers())}")
    if wanted.tokenizer is None:
        folder = _model_folder(wanted.model)
        return renderer_for(wanted.model, folder, name, FastTokenizer.from_folder(folder), options)
    if name is None:
        raise ConfigError("--renderer: say which, since --tokenizer names no model that would have one")
    return name, get_renderer(name, FastTokenizer.from_folder(Path(wanted.tokenizer).expanduser()), **options)


def _options(text: str) -> dict[str, Any]:
    try:
        options = files.parse_json(text)
    except ValueError as error:
        raise ConfigError(f"--options: not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"--options: it must be a JSON object, not {text}")
    return options


def _model_folder(model: str) -> Path:
    path = Path(model).expanduser()
    folder = path if path.is_dir() else description_of(model, at_hand(model))
    if folder is None:
        raise ConfigError(f"--model: {model}: there is no such folder, and no model of that name on this machine")
    return folder


def _rows(wanted: argparse.Namespace) -> tuple[list[SourceRow], Format[Any] | None]:
    """The rows to be shown, and the format of all, which is that of the first row that has one."""
    last = wanted.row or (_NUM_SHOWN if wanted.html is None else _NUM_IN_A_PAGE)
    form: Format[Any] | None = None
    rows: list[SourceRow] = []
    for row in islice(wiring.dataset_store().rows(source_of(wanted.file)), last):
        if form is None and row.values is not None:
            with suppress(DataError):
                form = SUPERVISED.detect(list(row.values))
        rows.append(row)
    if not rows:
        raise DataError(f"{wanted.file}: it holds no rows")
    if wanted.row is not None and len(rows) < wanted.row:
        raise ConfigError(f"--row: {wanted.row} is asked for, but {wanted.file} has {len(rows)}")
    return rows[-1:] if wanted.row is not None else rows, form


def _shown(row: SourceRow, form: Format[Any] | None, renderer: Renderer, train_on: TrainOnWhat) -> ShownRow:
    if row.values is None:
        return ShownRow(row.where, (), row.problem or "unreadable")
    try:
        dialogue = read_dialogue(row.values, form or SUPERVISED.detect(list(row.values)), {})
        tools = dialogue.tools or None
        examples = [
            example
            for messages in dialogue.orders
            for example in renderer.build_supervised_examples(messages, train_on, tools=tools)
        ]
    except (DataError, RenderError) as error:
        return ShownRow(row.where, (), str(error))
    return ShownRow(row.where, [shown_tokens(example, renderer.tokenizer) for example in examples])


def _format(name: str, renderer: Renderer, rows: Sequence[ShownRow], train_on: TrainOnWhat) -> ShownFormat:
    names = {number: control for control, number in renderer.tokenizer.control_tokens.items()}
    stops = [(stop, None) if isinstance(stop, str) else (names[stop], stop) for stop in renderer.stop_sequences()]
    tokens = [token for row in rows for example in row.examples for token in example]
    controls = {token.text: token.ids[0] for token in tokens if token.is_control}
    return ShownFormat(name, renderer.options, renderer.tokenizer.name, stops, controls, train_on)


def _print(shown: ShownFormat, rows: Sequence[ShownRow], *, is_one: bool) -> None:
    console = terminal.console()
    has_colours = terminal.has_colours()
    for name, text in described(shown):
        terminal.field(name, text)
    legend = "trained is green, control tokens are reversed" if has_colours else "⟦trained⟧ ‹control token›"
    terminal.field("marks", legend)
    for row in rows:
        terminal.say(f"\n{row.where}")
        if row.problem is not None:
            terminal.field("problem", visible(row.problem))
        for number, tokens in enumerate(row.examples, 1):
            which = f"example {number} of {len(row.examples)}: " if len(row.examples) > 1 else ""
            terminal.say(f"{which}{num_tokens(tokens):,} tokens, {num_trained(tokens):,} trained")
            console.print(coloured(tokens) if has_colours else Text(colourless(tokens)), emoji=False)
    if not is_one and len(rows) == _NUM_SHOWN:
        terminal.say(f"\nThese are the first {len(rows)} rows; --row N shows another one.")
