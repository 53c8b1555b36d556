"""The plain loop of the SFT speed benchmark: transformers' own model, padded batches, all logits, its own loss.

Options: ``attention`` (sdpa or eager), ``batch_size`` (examples padded together, in the order of the step, not sorted
by length; 0 takes the whole step). Gradients of a step's batches are added, each weighed by its trained tokens.
"""

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from benchmarks.sft_side import Stopwatch, arguments


def main() -> None:
    workload, options = arguments()
    torch.set_num_threads(workload.num_threads)
    model = AutoModelForCausalLM.from_pretrained(
        workload.model, dtype=torch.float32, attn_implementation=options["attention"]
    )
    if workload.adapter:
        model = PeftModel.from_pretrained(model, workload.adapter, is_trainable=True)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=workload.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
    )
    stopwatch = Stopwatch()
    for step in range(len(workload.steps)):
        examples = workload.examples(step)
        num_trained = sum(len(example.tokens) - example.num_prompt for example in examples)
        total = 0.0
        batch_size = options["batch_size"] or len(examples)
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            ids = pad_sequence([torch.tensor(example.tokens) for example in batch], batch_first=True)
            labels = pad_sequence([torch.tensor(e.labels) for e in batch], batch_first=True, padding_value=-100)
            is_real = pad_sequence([torch.ones(len(e.tokens), dtype=torch.long) for e in batch], batch_first=True)
            loss = model(
                input_ids=ids, attention_mask=is_real, labels=labels, use_cache=False, num_items_in_batch=num_trained
            ).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        stopwatch.step_ended(total)
    stopwatch.report()


if __name__ == "__main__":
    main()
