"""From a base model and a trained adapter to one whole model, which the next method begins from."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from crucible_train import files, wiring
from crucible_train.config.run_config import RunConfig
from crucible_train.judges import SCALAR_HEAD
from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.stages.base import Stage, in_thread
from crucible_train.stages.publishing import ADAPTER, MODEL


class Merge(Stage[RunConfig]):
    """Adds an adapter's update to its base; a whole model is taken as it is, and a reward model keeps its head."""

    name = "merge"
    code = ("adapters.torch_local.merging",)
    libraries = ("torch", "transformers", "peft")

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Merge, from ``model``, ``trained`` and ``package``, which holds the chat format."""
        trained = inputs["trained"]
        if (trained / ADAPTER).is_dir():
            await in_thread(wiring.merge_adapter, inputs["model"], trained / ADAPTER, folder)
            FastTokenizer.from_folder(inputs["model"]).to_folder(folder)
            if (trained / ADAPTER / SCALAR_HEAD).is_file():
                files.copy_file(trained / ADAPTER / SCALAR_HEAD, folder / SCALAR_HEAD)
        else:
            shutil.copytree(trained / MODEL, folder, dirs_exist_ok=True)
        files.copy_file(inputs["package"] / MODEL / RECORD_FILE, folder / RECORD_FILE)
