"""From a data set to conversations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import terminal, wiring
from crucible_train.data.conversations import described
from crucible_train.data.preparation import prepare
from crucible_train.data.rows import bad_rows
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages.base import Stage, in_thread
from crucible_train.types import ArtifactRef

BUILT_IN = "gsm8k-sample"
_SAMPLE = Path(__file__).parents[1] / "assets" / "gsm8k" / "sample.jsonl.gz"


class PrepareData(Stage[SFTConfig]):
    """Reads rows, detects their format, checks them and sets bad ones aside."""

    name = "prepare_data"
    reads = ("dataset", "data.format", "data.columns", "data.eval_split", "data.max_rows", "data.on_bad_row")
    code = ("data", "types", "adapters.row_store")

    def __init__(self, config: SFTConfig) -> None:
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
    line = (
        f"{summary['num_rows']:,} rows, {described(summary['format'], summary['columns'])}, "
        f"{summary['mean_turns']:g} messages each; {bad_rows(summary['num_bad_rows'])}"
    )
    terminal.field("data", line + (" [cached]" if is_cached else ""))
