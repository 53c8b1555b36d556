"""TRL's side of the distillation speed benchmark: its DistillationTrainer, which succeeds GKDTrainer.

Runs in the peers' environment. Options: ``batch_size`` (answers a micro-batch), ``bf16`` (autocast), ``checkpointing``.
Each prompt stands in the data set as often as it is answered. The trainer computes the divergence in chunks itself.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from benchmarks.distill_workload import Distillation, Stopwatch
from benchmarks.trl_settings import SETTINGS


class Watched(DistillationTrainer):
    """Counts the tokens that are sampled, and adds up the losses of a step's micro-batches."""

    num_tokens = 0
    total = 0.0

    def _generate_single_turn(self, *positional: object, **named: object) -> list[list[int]]:
        found = super()._generate_single_turn(*positional, **named)
        self.num_tokens += sum(len(answer) for answer in found)
        return found

    def training_step(self, *positional: object, **named: object) -> torch.Tensor:
        loss = super().training_step(*positional, **named)
        self.total += loss.item()
        return loss


class StepEnds(TrainerCallback):
    """Tells the stopwatch when a step has ended."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch
        self.trainer: Watched | None = None

    def on_step_end(self, *_: object, **__: object) -> None:
        self.stopwatch.step_ended(self.trainer.total, self.trainer.num_tokens)
        self.trainer.total, self.trainer.num_tokens = 0.0, 0


def main() -> None:
    workload, options = Distillation.read(Path(sys.argv[1])), json.loads(sys.argv[2])
    torch.set_num_threads(workload.num_threads)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        for folder in (workload.student, workload.teacher)
    )
    student.generation_config.eos_token_id = workload.stop_token_ids  # the trainer looks for ends here
    stopwatch = Stopwatch()
    ends = StepEnds(stopwatch)
    with tempfile.TemporaryDirectory() as folder:
        ends.trainer = Watched(
            model=student,
            teacher_model=teacher,
            args=config(workload, options, folder),
            train_dataset=prompts(workload),
            processing_class=tokenizer(student.config.vocab_size),
            callbacks=[ends],
        )
        ends.trainer.train()
    stopwatch.report()


def config(workload: Distillation, options: dict, folder: str) -> DistillationConfig:
    answers_a_step = len(workload.steps[0]) * workload.group_size
    return DistillationConfig(
        output_dir=folder,
        beta=1.0,
        temperature=1.0,
        max_completion_length=workload.max_tokens,
        shuffle_dataset=False,
        per_device_train_batch_size=options["batch_size"],
        gradient_accumulation_steps=answers_a_step // options["batch_size"],
        max_steps=len(workload.steps),
        learning_rate=workload.learning_rate,
        bf16=options["bf16"],
        gradient_checkpointing=options["checkpointing"],
        logging_steps=1000,
        **SETTINGS,
    )


def prompts(workload: Distillation) -> Dataset:
    rows = [prompt for step in workload.steps for prompt in step for _ in range(workload.group_size)]
    return Dataset.from_dict({"prompt": [" ".join(f"w{token}" for token in row) for row in rows]})


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One word an id, so that prompts are the ids they are made of."""
    names = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{token}": token for token in range(3, vocab_size)}
    words = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


if __name__ == "__main__":
    main()
