"""From a base model and a trained adapter to one whole model, which the next method begins from."""

from collections.abc import Mapping
from pathlib import Path

from crucible_train import files
from crucible_train.config.run_config import RunConfig
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.stages.base import Stage
from crucible_train.stages.publishing import MODEL, whole_model


class Merge(Stage[RunConfig]):
    """Adds an adapter's update to its base; a whole model is taken as it is, and a reward model keeps its head."""

    name = "merge"
    code = ("adapters.torch_local.merging", "stages.publishing")
    libraries = ("torch", "transformers", "peft")

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Merge, from ``model``, ``trained`` and ``package``, which holds the chat format."""
        await whole_model(inputs["model"], inputs["trained"], folder)
        files.copy_file(inputs["package"] / MODEL / RECORD_FILE, folder / RECORD_FILE)
