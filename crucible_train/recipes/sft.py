"""Supervised fine-tuning."""

from crucible_train.config.base import Section, option
from crucible_train.config.sections import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvalConfig,
    OptimConfig,
    PeftConfig,
)


class SFTConfig(Section):
    """Supervised fine-tuning of a causal language model on conversations."""

    model: str = option("smollm2-135m-instruct", "a folder, a GGUF file, a hub id, or the built-in model's name")
    dataset: str = option("gsm8k-sample", "a file, a folder, a hub id, any fsspec URL, or the built-in sample's name")
    output_dir: str = option("runs", "folder that holds the run folders")
    run_name: str | None = option(None, "name in front of the run's id; null makes one of model and data")
    seed: int = option(0, "decides the split, the order and every draw; 0 or more", ge=0)
    report_to: list[str] = option(["console"], "where metrics go besides metrics.jsonl")
    cache_dir: str = option("~/.cache/crucible_train", "store of cached artifacts: a folder or any fsspec URL")
    data: DataConfig = option(DataConfig(), "rows and rendering")
    peft: PeftConfig = option(PeftConfig(), "adapter")
    train: OptimConfig = option(OptimConfig(), "optimizer and schedule")
    engine: EngineConfig = option(EngineConfig(), "how it is computed")
    eval: EvalConfig = option(EvalConfig(), "what is measured")
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "what is kept")
