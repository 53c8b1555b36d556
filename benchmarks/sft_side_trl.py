"""TRL's side of the SFT speed benchmark: its SFTTrainer with packing. Runs in the peers' environment.

Options: ``rows`` (packs a micro-batch, which TRL joins into one row), ``bf16`` (autocast), ``checkpointing``.

TRL gets the packs ready made, as its own ``pack_dataset(strategy="bfd")`` would give them: ``input_ids``, ``labels``
and ``seq_lengths``. Its collator turns the lengths into ``position_ids`` that start again with every example and gives
no attention mask; transformers makes a block-diagonal mask of that for SDPA, so that no example sees another.
"""

import tempfile

import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.sft_side import Stopwatch, arguments
from benchmarks.sft_workload import PACK_LENGTH, Workload
from benchmarks.trl_settings import SETTINGS


class Watched(SFTTrainer):
    """Adds up the losses of a step's micro-batches."""

    total = 0.0

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
        self.stopwatch.step_ended(self.trainer.total)
        self.trainer.total = 0.0


def main() -> None:
    workload, options = arguments()
    torch.set_num_threads(workload.num_threads)
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32, attn_implementation="sdpa")
    if workload.adapter:
        model = PeftModel.from_pretrained(model, workload.adapter, is_trainable=True)
    stopwatch = Stopwatch()
    ends = StepEnds(stopwatch)
    with tempfile.TemporaryDirectory() as folder:
        ends.trainer = Watched(
            model=model,
            args=config(workload, options, folder),
            train_dataset=packs(workload),
            processing_class=tokenizer(),
            callbacks=[ends],
        )
        ends.trainer.train()
    stopwatch.report()


def config(workload: Workload, options: dict, folder: str) -> SFTConfig:
    packs_a_step = len(workload.steps[0])
    return SFTConfig(
        output_dir=folder,
        packing=True,
        max_length=PACK_LENGTH,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        per_device_train_batch_size=options["rows"],
        gradient_accumulation_steps=packs_a_step // options["rows"],
        num_train_epochs=1,
        learning_rate=workload.learning_rate,
        bf16=options["bf16"],
        gradient_checkpointing=options["checkpointing"],
        logging_steps=1000,
        **SETTINGS,
    )


def packs(workload: Workload) -> Dataset:
    rows = [pack for step in workload.steps for pack in step]
    return Dataset.from_dict(
        {
            "input_ids": [[token for example in row for token in example.tokens] for row in rows],
            "labels": [[label for example in row for label in example.labels] for row in rows],
            "seq_lengths": [[len(example.tokens) for example in row] for row in rows],
        }
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """One that nothing is rendered with; the trainer asks for a padding token."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


if __name__ == "__main__":
    main()
