"""From a source to conversations on disk."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.config.sections import DataConfig
from crucible_train.data.conversations import Dialogue, Format, detect, named, read_row
from crucible_train.data.rows import BadRow, Quarantine, Reason
from crucible_train.data.tables import write_dialogues
from crucible_train.errors import DataError
from crucible_train.ports import DatasetStore, SourceRow

CONVERSATIONS = "conversations.arrow"
HELD_OUT = "held_out.arrow"
QUARANTINE = "quarantine.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was found in one source."""

    format: str
    columns: tuple[str, ...]
    num_rows: int
    num_turns: int


def prepare(store: DatasetStore, source: str, config: DataConfig, folder: Path) -> Mapping[str, Any]:
    """Read a data set (and the held-out one, where that is another) into ``folder``; what was found.

    Raises:
        DataError: the source cannot be read, a row is bad and the configuration says stop, or no row is left.
    """
    quarantine = Quarantine(config.on_bad_row)
    found = _read(store, source, config, folder / CONVERSATIONS, quarantine)
    summary: dict[str, Any] = {
        "source": source,
        "format": found.format,
        "columns": list(found.columns),
        "num_rows": found.num_rows,
        "mean_turns": round(found.num_turns / found.num_rows, 2) if found.num_rows else 0.0,
    }
    num_rows = found.num_rows
    if isinstance(config.eval_split, str):
        held_out = _read(store, config.eval_split, config, folder / HELD_OUT, quarantine)
        summary |= {"held_out_source": config.eval_split, "num_held_out_rows": held_out.num_rows}
        num_rows = min(num_rows, held_out.num_rows)
    quarantine.close(num_rows, folder / QUARANTINE)
    summary |= {"num_bad_rows": len(quarantine.rows), "bad_rows": quarantine.counts()}
    files.write_json(folder / SUMMARY, summary)
    return summary


def _read(store: DatasetStore, source: str, config: DataConfig, path: Path, quarantine: Quarantine) -> _Reading:
    rows = islice(store.rows(source), config.max_rows)
    form: Format | None = None if config.format == "auto" else named(config.format)
    columns: tuple[str, ...] = ()
    num_turns = 0

    def dialogues() -> Iterator[tuple[Dialogue, str]]:
        nonlocal form, columns, num_turns
        for row in rows:
            if row.values is None:
                quarantine.add(BadRow(row.where, Reason.UNREADABLE, row.problem or "unreadable", row.snippet))
                continue
            if form is None:
                form = _detected(source, row, config)
            if not columns:
                columns = form.columns([*config.columns, *row.values]) or ()
            try:
                dialogue = read_row(row.values, form, config.columns)
            except DataError as error:
                quarantine.add(BadRow(row.where, Reason.NOT_A_CONVERSATION, str(error)))
                continue
            num_turns += len(dialogue.messages)
            yield dialogue, row.where

    num_rows = write_dialogues(path, dialogues())
    return _Reading(form.name if form else "none", columns, num_rows, num_turns)


def _detected(source: str, row: SourceRow, config: DataConfig) -> Format:
    assert row.values is not None
    try:
        return detect([*config.columns, *row.values])
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
