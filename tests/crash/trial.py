"""A whole training run on a model that is made in a moment: what tests start, stop and start again."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.data.examples import Example
from crucible_train.data.tables import Examples, write_examples
from crucible_train.evaluation.nll import measure_nll, nll_metrics
from crucible_train.loop.run import TrainingRun
from crucible_train.loop.training import TrainingResult
from crucible_train.recipes.sft import SFTConfig, train
from crucible_train.types import Hardware

VOCAB = 97
NUM_EXAMPLES = 7
MODEL = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    pad_token_id=0,
)


def make_world(folder: Path) -> None:
    """Write a model, seven examples to train on (so that batches of two leave one over) and three to hold out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(MODEL).save_pretrained(folder / "model")
    draw = np.random.default_rng(0)

    def example(row: int) -> Example:
        tokens = draw.integers(1, VOCAB, int(draw.integers(6, 24))).astype(np.int32)
        weights = np.ones(tokens.size, np.float32)
        weights[:3] = 0.0
        return Example(tokens, weights, row, tokens.size)

    write_examples(folder / "train.arrow", (example(row) for row in range(NUM_EXAMPLES)))
    write_examples(folder / "held_out.arrow", (example(row) for row in range(3)))


def config_of(fields: Mapping[str, Any]) -> SFTConfig:
    """A configuration for this world: twelve steps, three epochs, dropout, an evaluation and a save every third."""
    sections: dict[str, Any] = {
        "peft": {"use_peft": True, "lora_r": 2, "lora_alpha": 4.0, "lora_dropout": 0.1},
        "train": {"learning_rate": 0.01, "max_steps": 12, "per_device_train_batch_size": 2, "weight_decay": 0.01},
        "eval": {"eval_steps": 3},
        "checkpoint": {"save_steps": 3, "save_minutes": 0.0},
        "seed": 1,
    }
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        (sections[section] if section else sections)[name] = value
    return SFTConfig.model_validate(sections)


@dataclass
class Trial:
    """One start of a run in ``run_dir``.

    Attributes:
        on_step: called with each step whose numbers are logged, in the event loop.
        change_examples: replaces the examples that are trained on.
        evaluations: what each evaluation gives, by step; the held-out examples are measured where it is None.
        reports: the lines a person would have read.
        starts: after how many steps the run began or went on.
    """

    world: Path
    run_dir: Path
    fields: Mapping[str, Any] = field(default_factory=dict)
    on_step: Callable[[int], None] = lambda step: None
    change_examples: Callable[[list[Example]], list[Example]] = lambda examples: examples
    evaluations: Callable[[int], Awaitable[Mapping[str, float]]] | None = None
    reports: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def run(self) -> TrainingResult:
        """Train to the end."""
        return asyncio.run(self.train())

    async def train(self) -> TrainingResult:
        """Train to the end, within a running loop."""
        config = config_of(self.fields)
        peft = config.peft
        lora = Lora(peft.lora_r, peft.lora_alpha, peft.lora_dropout, "all-linear") if peft.use_peft else None
        settings = EngineSettings(Hardware("cpu", "float32", 1), self.run_dir / "checkpoints", 32, seed=config.seed)
        client = LocalBackend(self.world / "model", None, settings, lora)  # type: ignore[arg-type]
        run = TrainingRun(
            self.run_dir, client, _Watcher(self.on_step), config.checkpoint, self.reports.append, self.starts.append
        )
        examples = self.change_examples(list(Examples(self.world / "train.arrow")))
        held_out = list(Examples(self.world / "held_out.arrow"))

        async def evaluate(step: int) -> Mapping[str, float]:
            if self.evaluations is not None:
                return await self.evaluations(step)
            return nll_metrics(await measure_nll(client, held_out))

        try:
            result = await train(config, client, examples, evaluate, run, {"eval/nll": 4.5})
            run.metrics.finish("done")
        finally:
            run.metrics.finish("failed")
            await client.close()
        return result


@dataclass
class _Watcher:
    """A logger that only says which step it was told of."""

    on_step: Callable[[int], None]

    def start(self, run: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.on_step(step)

    def log_text(self, name: str, text: str, step: int) -> None: ...

    def finish(self, status: str) -> None: ...
