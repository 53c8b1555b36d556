"""TRL's side of the GRPO speed benchmark: its GRPOTrainer. Runs in the peers' environment.

Options: ``batch`` (answers of a micro-batch; 0: all of a step), ``bf16`` (autocast), ``checkpointing``, ``cache``
(transformers' cache implementation), ``continuous`` (its continuous batching, with these settings), ``answers`` (a file
that gets all answers).
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.grpo_side import Stopwatch, arguments
from benchmarks.grpo_workload import Workload, reward
from benchmarks.trl_settings import SETTINGS


class Watched(GRPOTrainer):
    """Keeps the time, and adds up the losses of a step's micro-batches."""

    stopwatch: Stopwatch
    total = 0.0

    def _generate_single_turn(self, *positional: Any, **named: Any) -> Any:
        with self.stopwatch.sampling():
            return super()._generate_single_turn(*positional, **named)

    def training_step(self, *positional: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*positional, **named)
        self.total += float(loss)
        return loss


class Clock(TrainerCallback):
    """Ends a step when its numbers are logged."""

    def __init__(self, trainer: Watched, played: list[tuple[int, list[int]]]) -> None:
        self._trainer, self._played, self._seen = trainer, played, 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.stopwatch = Stopwatch()

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        if logs is None or "grad_norm" not in logs:
            return
        new = [tokens for _, tokens in self._played[self._seen :]]
        self._seen = len(self._played)
        self._trainer.stopwatch.step_ended(
            loss=self._trainer.total,
            grad_norm=float(logs["grad_norm"]),
            num_tokens=float(sum(map(len, new))),
            reward=sum(map(reward, new)) / len(new),
        )
        self._trainer.total = 0.0


def main() -> None:
    workload, options = arguments()
    torch.set_num_threads(workload.num_threads)
    tokenizer = AutoTokenizer.from_pretrained(workload.model)
    played: list[tuple[int, list[int]]] = []

    def judge(completion_ids: list[list[int]], place: list[int], **_: Any) -> list[float]:
        played.extend(zip(place, completion_ids, strict=True))
        return [reward(tokens) for tokens in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        trainer = Watched(
            model=AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32),
            reward_funcs=judge,
            args=config_of(workload, options, folder),
            train_dataset=rows(workload, tokenizer),
            processing_class=tokenizer,
        )
        trainer.add_callback(Clock(trainer, played))
        trainer.train()
    trainer.stopwatch.report()
    if "answers" in options:
        Path(options["answers"]).write_text(json.dumps(played), encoding="utf-8")


def config_of(workload: Workload, options: dict[str, Any], folder: str) -> GRPOConfig:
    num_answers = workload.groups_a_step * workload.group_size
    batch = options.get("batch") or num_answers
    continuous = options.get("continuous")
    return GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=num_answers // batch,
        num_generations=workload.group_size,
        max_completion_length=workload.max_tokens,
        temperature=1.0,
        shuffle_dataset=False,
        max_steps=len(workload.steps),
        learning_rate=workload.learning_rate,
        bf16=options.get("bf16", False),
        gradient_checkpointing=options.get("checkpointing", False),
        cache_implementation=options.get("cache"),
        use_transformers_continuous_batching=continuous is not None,
        transformers_continuous_batching_config=continuous or None,
        logging_steps=1,
        **SETTINGS,
        seed=workload.seed + 42,
    )


def rows(workload: Workload, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The prompts as texts, which is what the trainer takes; each is read as the ids it was made of."""
    texts = [tokenizer.decode(prompt) for prompt in workload.prompts]
    for text, prompt in zip(texts, workload.prompts, strict=True):
        if tokenizer(text)["input_ids"] != prompt:
            raise ValueError(f"the tokenizer reads other ids: {text!r}")
    return Dataset.from_dict({"prompt": texts, "place": list(range(len(texts)))})


if __name__ == "__main__":
    main()
