"""From a data set to preferences."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import terminal, wiring
from crucible_train.data.conversations import described
from crucible_train.data.preference_preparation import prepare
from crucible_train.data.rows import bad_rows
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.stages.base import Stage, in_thread
from crucible_train.types import ArtifactRef

BUILT_IN = "gsm8k-pairs"
_SAMPLE = Path(__file__).parents[2] / "assets" / "gsm8k" / "pairs.jsonl.gz"


class PreparePreferences(Stage[DPOConfig]):
    """Reads rows, detects their format, checks them and sets aside what cannot be used."""

    name = "prepare_preferences"
    reads = ("dataset", "data.format", "data.columns", "data.eval_split", "data.max_rows", "data.on_bad_row")
    code = ("data", "types", "adapters.row_store")

    def __init__(self, config: DPOConfig) -> None:
        """Find the data set and digest it.

        Raises:
            DataError: there is none.
        """
        super().__init__(config)
        self._store = wiring.dataset_store()
        self._source = source_of(config.dataset)
        self._digests = [self._store.describe(self._source).sha256]
        if isinstance(config.data.eval_split, str):
            self._digests.append(self._store.describe(config.data.eval_split).sha256)

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """The content of the source decides the output."""
        return super().identity(inputs) | {"sources": self._digests}

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Read the rows."""
        await in_thread(prepare, self._store, self._source, self.config.data, folder)


def source_of(dataset: str) -> str:
    """The path of the built-in sample, or the source as given."""
    return str(_SAMPLE) if dataset == BUILT_IN else dataset


def report(summary: Mapping[str, Any], *, is_cached: bool) -> None:
    """Say what the data set was found to be."""
    unused = ", ".join(f"{count:,} {reason}" for reason, count in summary["bad_rows"].items())
    line = (
        f"{summary['num_rows']:,} preferences, {described(summary['format'], summary['columns'])}; "
        f"{f'not used: {unused}' if unused else bad_rows(0)}"
    )
    terminal.field("data", line + (" [cached]" if is_cached else ""))
