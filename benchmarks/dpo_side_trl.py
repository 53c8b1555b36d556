"""TRL's side of the DPO speed benchmark: its DPOTrainer. Runs in the peers' environment.

Options: ``pairs`` (a micro-batch), ``bf16`` (autocast), ``checkpointing``. The pairs come tokenised, and the reference
is precomputed (``precompute_ref_log_probs``) before the stopwatch starts.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from benchmarks.dpo_workload import BETA, Workload
from benchmarks.sft_side import Stopwatch
from benchmarks.sft_side_trl import StepEnds, tokenizer
from benchmarks.trl_settings import SETTINGS


class Watched(DPOTrainer):
    """Takes pairs as they are, and adds up the losses of a step's micro-batches."""

    total = 0.0

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset  # tokenised already

    def training_step(self, *positional: object, **named: object) -> torch.Tensor:
        loss = super().training_step(*positional, **named)
        self.total += loss.item()
        return loss


def main() -> None:
    workload, options = Workload.read(Path(sys.argv[1])), json.loads(sys.argv[2])
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(workload.num_threads)
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32, attn_implementation="sdpa")
    if workload.adapter:
        model = PeftModel.from_pretrained(model, workload.adapter, is_trainable=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Watched(
            model=model,
            args=config(workload, options, folder),
            train_dataset=pairs(workload),
            processing_class=tokenizer(),
        )
        stopwatch = Stopwatch()
        ends = StepEnds(stopwatch)
        ends.trainer = trainer
        trainer.add_callback(ends)
        trainer.train()
    stopwatch.report()


def config(workload: Workload, options: dict, folder: str) -> DPOConfig:
    return DPOConfig(
        output_dir=folder,
        beta=BETA,
        loss_type="sigmoid",
        max_length=None,
        precompute_ref_log_probs=True,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=options["pairs"],
        gradient_accumulation_steps=len(workload.steps[0]) // options["pairs"],
        num_train_epochs=1,
        learning_rate=workload.learning_rate,
        bf16=options["bf16"],
        gradient_checkpointing=options["checkpointing"],
        logging_steps=1000,
        **SETTINGS,
    )


def pairs(workload: Workload) -> Dataset:
    found = [pair for step in workload.steps for pair in step]
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in found],
            "chosen_ids": [pair.chosen for pair in found],
            "rejected_ids": [pair.rejected for pair in found],
        }
    )


if __name__ == "__main__":
    main()
