"""Run in the peers' Python: what TRL's DPOTrainer makes of given log-probabilities.

Reads a JSON object from standard input (``logps``, ``reference``, each a list of [chosen, rejected] lists of the
log-probabilities of a completion's tokens; ``cases``, a list of its options) and writes a list of losses, one a case.
"""

import json
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer


class Model:
    """Answers with log-probabilities that are given; what the trainer only logs is 0."""

    training = True

    def __init__(self, log_probs: torch.Tensor) -> None:
        self.log_probs = log_probs

    def __call__(self, **_: Any) -> SimpleNamespace:
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def loss(task: dict[str, Any], case: dict[str, Any]) -> float:
    """The loss that the trainer's own code computes."""
    sides = [side for place in (0, 1) for side in (pair[place] for pair in task["logps"])]
    width = max(len(side) for side in sides)
    log_probs = torch.zeros(len(sides), width)
    mask = torch.zeros(len(sides), width + 1, dtype=torch.long)
    for row, side in enumerate(sides):
        log_probs[row, : len(side)] = torch.tensor(side)
        mask[row, 1 : len(side) + 1] = 1
    chosen, rejected = (torch.tensor([sum(pair[place]) for pair in task["reference"]]) for place in (0, 1))
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.__dict__ |= {
        "accelerator": SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
        "model": Model(log_probs),
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_types": [case["loss_type"]],
        "loss_weights": [1.0],
        "use_weighting": False,
        "beta": case["beta"],
        "label_smoothing": case["label_smoothing"],
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return float(trainer._compute_loss(trainer.model, inputs, return_outputs=False))


if __name__ == "__main__":
    task = json.load(sys.stdin)
    print(json.dumps([loss(task, case) for case in task["cases"]]))
