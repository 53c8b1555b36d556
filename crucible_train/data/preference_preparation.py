"""From a source to preferences on disk."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.config.redaction import hide_secrets
from crucible_train.config.sections import PreferenceDataConfig
from crucible_train.data.conversations import Format, Row
from crucible_train.data.preference_tables import StoredPreference, write_preferences
from crucible_train.data.preferences import EXAMPLE, PREFERENCES, read_preference
from crucible_train.data.preparation import HELD_OUT, QUARANTINE, SUMMARY
from crucible_train.data.rows import Quarantine
from crucible_train.data.source_rows import SourceRows
from crucible_train.ports import DatasetStore
from crucible_train.types import Preference

PAIRS = "preferences.arrow"


def prepare(store: DatasetStore, source: str, config: PreferenceDataConfig, folder: Path) -> Mapping[str, Any]:
    """Read a data set (and the held-out one, where that is another) into ``folder``; what was found.

    Raises:
        DataError: the source cannot be read, a row is bad and the configuration says stop, or no row is left.
    """
    quarantine = Quarantine(config.on_bad_row, example=EXAMPLE)
    summary = {"source": hide_secrets(source)} | _read(store, source, config, folder / PAIRS, quarantine)
    quarantine.settle(summary["num_rows"], f"dataset: {hide_secrets(source)}")
    if isinstance(config.eval_split, str):
        held_out = _read(store, config.eval_split, config, folder / HELD_OUT, quarantine)
        quarantine.settle(held_out["num_rows"], f"data.eval_split: {hide_secrets(config.eval_split)}")
        summary |= {"held_out_source": hide_secrets(config.eval_split), "num_held_out_rows": held_out["num_rows"]}
        summary["num_unpaired"] += held_out["num_unpaired"]
    quarantine.close(folder / QUARANTINE)
    summary |= {"num_bad_rows": len(quarantine.rows), "bad_rows": quarantine.counts()}
    files.write_json(folder / SUMMARY, summary)
    return summary


def _read(
    store: DatasetStore, source: str, config: PreferenceDataConfig, path: Path, quarantine: Quarantine
) -> dict[str, Any]:
    """Write the preferences of a source to ``path``; what was found."""
    num_unpaired = 0

    def stored(row: Row, form: Format[Preference], renames: Mapping[str, str], where: str) -> StoredPreference:
        return StoredPreference.of(read_preference(row, form, renames), where)

    rows = SourceRows(PREFERENCES, stored, config, quarantine)

    def counted() -> Iterator[StoredPreference]:
        nonlocal num_unpaired
        for found in rows.read(store, source):
            num_unpaired += found.chosen is None or found.rejected is None
            yield found

    num_rows = write_preferences(path, counted())
    form = rows.format.name if rows.format else "none"
    return {"format": form, "columns": list(rows.columns), "num_rows": num_rows, "num_unpaired": num_unpaired}
