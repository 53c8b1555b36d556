"""From a source to conversations on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.config.redaction import hide_secrets
from crucible_train.config.sections import DataConfig
from crucible_train.data.comparisons import SUPERVISED, read_dialogue
from crucible_train.data.conversations import Format, Row
from crucible_train.data.rows import Quarantine
from crucible_train.data.source_rows import SourceRows
from crucible_train.data.tables import StoredDialogue, write_dialogues
from crucible_train.ports import DatasetStore

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
    quarantine.settle(found.num_rows, f"dataset: {hide_secrets(source)}")
    summary: dict[str, Any] = {
        "source": hide_secrets(source),
        "format": found.format,
        "columns": list(found.columns),
        "num_rows": found.num_rows,
        "mean_turns": round(found.num_turns / found.num_rows, 2) if found.num_rows else 0.0,
    }
    if isinstance(config.eval_split, str):
        held_out = _read(store, config.eval_split, config, folder / HELD_OUT, quarantine)
        quarantine.settle(held_out.num_rows, f"data.eval_split: {hide_secrets(config.eval_split)}")
        summary |= {"held_out_source": hide_secrets(config.eval_split), "num_held_out_rows": held_out.num_rows}
    quarantine.close(folder / QUARANTINE)
    summary |= {"num_bad_rows": len(quarantine.rows), "bad_rows": quarantine.counts()}
    files.write_json(folder / SUMMARY, summary)
    return summary


def _read(store: DatasetStore, source: str, config: DataConfig, path: Path, quarantine: Quarantine) -> _Reading:
    """Write the conversations of a source to ``path``.

    Raises:
        DataError: the source cannot be read, or no format fits its rows.
    """
    num_turns = 0

    def stored(row: Row, form: Format[Sequence[Any]], renames: Mapping[str, str], where: str) -> StoredDialogue:
        nonlocal num_turns
        dialogue = read_dialogue(row, form, renames)
        found = StoredDialogue.of(dialogue, where)
        num_turns += len(dialogue.messages)
        return found

    rows = SourceRows(SUPERVISED, stored, config, quarantine)
    num_rows = write_dialogues(path, rows.read(store, source))
    return _Reading(rows.format.name if rows.format else "none", rows.columns, num_rows, num_turns)
