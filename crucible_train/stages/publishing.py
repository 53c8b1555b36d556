"""From a run's checkpoint to the weights that it publishes: what every training stage ends with."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from crucible_train import checkpoints, files, wiring
from crucible_train.config.run_config import RunConfig
from crucible_train.config.sections import PeftConfig
from crucible_train.judges import SCALAR_HEAD
from crucible_train.loop.training import TrainingResult
from crucible_train.metrics_file import METRICS_FILE
from crucible_train.ports import ModelInfo, TrainingClient
from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.stages.base import in_thread
from crucible_train.stages.prepare_model import base_name
from crucible_train.types import Hardware

ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
FROZEN = PeftConfig(lora_r=1)
"""A frozen model is loaded with an adapter that adds nothing: so it is kept in the precision of its products."""
MODEL = "model"
RESULT = "result.json"
_NOT_PUBLISHED = ("optimizer.safetensors", "loop.json", "metrics.jsonl", "rollouts.json", "reference.json", RECORD_FILE)


async def open_client(
    config: RunConfig,
    model_dir: Path,
    hardware: Hardware,
    state_dir: Path,
    trained: Path | None = None,
    *,
    with_head: bool = False,
) -> TrainingClient:
    """The model of a configuration, loaded in a thread.

    Args:
        config: the whole configuration.
        model_dir: the model before training.
        hardware: where it is computed.
        state_dir: where its states are kept.
        trained: a training stage's output, where the model is wanted as it was trained.
        with_head: give it a scalar head: a reward model.
    """
    weights = None if trained is None else trained / MODEL
    is_full = weights is not None and weights.is_dir()

    open_it: Callable[..., TrainingClient] = wiring.reward_model if with_head else wiring.training_client

    def load() -> TrainingClient:
        return open_it(
            weights if weights is not None and is_full else model_dir,
            config.peft,
            config.engine,
            hardware,
            state_dir,
            name=base_name(config.model),
            seed=config.seed,
            adapter=trained / ADAPTER if trained is not None and not is_full else None,
        )

    return await in_thread(load)


def publish(run_dir: Path, result: TrainingResult, config: RunConfig, model_dir: Path, folder: Path) -> None:
    """Put weights, metrics and result of a run into its training stage's output; whole models get their tokenizer.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    checkpoint = run_dir / "checkpoints" / checkpoints.checkpoint_name(result.published_step)
    checkpoints.verify(checkpoint)
    target = folder / (ADAPTER if config.peft.use_peft else MODEL)
    for name in files.read_json(checkpoint / checkpoints.MANIFEST)["files"]:
        if name not in _NOT_PUBLISHED:
            files.copy_file(checkpoint / name, target / name)
    if not config.peft.use_peft:
        FastTokenizer.from_folder(model_dir).to_folder(target)
    files.copy_file(run_dir / METRICS_FILE, folder / METRICS_FILE)
    files.write_json(folder / RESULT, asdict(result))


async def whole_model(model_dir: Path, trained: Path, folder: Path) -> None:
    """Put the whole model of a training stage's output into a folder.

    An adapter's update is added to its base, and a whole model taken as it is; a reward model keeps its head.

    Args:
        model_dir: the model before training.
        trained: the stage's output.
        folder: where to.

    Raises:
        ModelError: the model or the adapter cannot be read.
    """
    adapter = trained / ADAPTER
    if not adapter.is_dir():
        shutil.copytree(trained / MODEL, folder, dirs_exist_ok=True)
        return
    await in_thread(wiring.merge_adapter, model_dir, adapter, folder)
    FastTokenizer.from_folder(model_dir).to_folder(folder)
    if (adapter / SCALAR_HEAD).is_file():
        files.copy_file(adapter / SCALAR_HEAD, folder / SCALAR_HEAD)


def what_is_trained(config: RunConfig, model: ModelInfo) -> str:
    """In words: the adapter's rank or all weights, and how many of the model's they are."""
    method = f"LoRA of rank {config.peft.lora_r}" if config.peft.use_peft else "all weights"
    return f"{method}: {model.num_trainable_params / 1e6:,.1f} of {model.num_params / 1e6:,.1f} million weights"
