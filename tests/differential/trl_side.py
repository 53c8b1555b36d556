"""Run in the peers' Python: what TRL's trainers make of given log-probabilities.

Reads a JSON object from standard input and writes a list of losses, one for each of its ``cases``, which are options of
a trainer. ``logps`` and ``reference`` are lists of [chosen, rejected] lists of the log-probabilities of a completion's
tokens. For KTO, which takes completions alone, ``mismatched`` has one list for each pair, and what the reference gives
the same tokens is in ``mismatched_reference``: there the chosen side of an even pair is taken, the rejected of an odd.
"""

import json
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

Rows = list[list[float]]
ACCELERATOR = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)


class Model:
    """Answers with log-probabilities that are given, by the first token it reads; what is only logged is 0."""

    training = True

    def __init__(self, *log_probs: torch.Tensor) -> None:
        self.log_probs = log_probs

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        log_probs = self.log_probs[int(input_ids[0, 0])]
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


class Logits:
    """Answers with logits over two tokens, of which the first is always the target."""

    def __init__(self, log_probs: torch.Tensor) -> None:
        others = torch.log(-torch.expm1(log_probs))
        logits = torch.stack([log_probs, others], dim=-1)
        self.logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)

    def __call__(self, *_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


def table(rows: Rows, empty: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows side by side, and which tokens are a completion's: all but the first."""
    width = max(len(row) for row in rows)
    log_probs = torch.full((len(rows), width), empty, dtype=torch.float64)
    mask = torch.zeros(len(rows), width + 1, dtype=torch.long)
    for place, row in enumerate(rows):
        log_probs[place, : len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[place, 1 : len(row) + 1] = 1
    return log_probs, mask


def made(trainer: type, **fields: Any) -> Any:
    """A trainer that was never set up, with what its loss reads."""
    one = trainer.__new__(trainer)
    one.__dict__ |= {"accelerator": ACCELERATOR, "aux_loss_enabled": False, "_metrics": {"train": defaultdict(list)}}
    one.__dict__ |= {"_total_train_tokens": 0, "_tp_size": 1, "is_encoder_decoder": False} | fields
    return one


def dpo(task: dict[str, Any], case: dict[str, Any]) -> float:
    """What DPOTrainer computes."""
    log_probs, mask = table([side for place in (0, 1) for side in (pair[place] for pair in task["logps"])])
    log_probs = log_probs.float()
    chosen, rejected = (torch.tensor([sum(pair[place]) for pair in task["reference"]]) for place in (0, 1))
    trainer = made(
        DPOTrainer,
        model=Model(log_probs),
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[case["loss_type"]],
        loss_weights=[1.0],
        use_weighting=False,
        beta=case["beta"],
        label_smoothing=case["label_smoothing"],
    )
    inputs = {"input_ids": 0 * mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return float(trainer._compute_loss(trainer.model, inputs, return_outputs=False))


def kto(task: dict[str, Any], case: dict[str, Any]) -> float:
    """What KTOTrainer computes of one side of each pair."""
    places = [row % 2 for row in range(len(task["logps"]))]

    def sides(name: str) -> Rows:
        return [pair[place] for pair, place in zip(task[name], places, strict=True)]

    def sums(rows: Rows) -> torch.Tensor:
        return torch.tensor([sum(row) for row in rows], dtype=torch.float64)

    log_probs, mask = table(sides("logps"))
    of_others, others = table(task["mismatched"])
    trainer = made(
        KTOTrainer,
        model=Model(log_probs, of_others),
        calculate_KL=True,
        precompute_ref_logps=True,
        loss_type="kto",
        beta=case["beta"],
        desirable_weight=case["desirable_weight"],
        undesirable_weight=case["undesirable_weight"],
    )
    inputs = {"input_ids": 0 * mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"KL_input_ids": torch.ones_like(others), "KL_attention_mask": others, "KL_completion_mask": others}
    inputs |= {"ref_logps": sums(sides("reference")), "ref_KL_logps": sums(task["mismatched_reference"])}
    inputs["label"] = torch.tensor([place == 0 for place in places])
    return float(trainer._compute_loss(trainer.model, inputs, return_outputs=False))


def without_reference(trainer: Any, pairs: list[Rows]) -> float:
    """What a trainer of pairs whose model gives logits computes of some."""
    log_probs, mask = table([side for place in (0, 1) for side in (pair[place] for pair in pairs)], empty=-1.0)
    labels = torch.where(mask == 1, 0, -100)
    batch = {}
    for name, rows in (("chosen", slice(len(pairs))), ("rejected", slice(len(pairs), None))):
        ids = torch.zeros_like(mask[rows])
        batch |= {f"{name}_input_ids": ids, f"{name}_labels": labels[rows]}
        attended = mask[rows].clone()
        attended[:, 0] = 1
        batch[f"{name}_attention_mask"] = attended
    loss, _ = trainer.get_batch_loss_metrics(Logits(log_probs), batch)
    return float(loss)


def orpo(task: dict[str, Any], case: dict[str, Any]) -> float:
    """What ORPOTrainer computes, the mean over batches of one pair: its likelihood is a mean over a batch's tokens."""
    trainer = made(ORPOTrainer, beta=case["beta"], padding_value=0)
    return sum(without_reference(trainer, [pair]) for pair in task["logps"]) / len(task["logps"])


def simpo(task: dict[str, Any], case: dict[str, Any]) -> float:
    """What CPOTrainer computes as SimPO."""
    fields = {"loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.0, "label_smoothing": 0.0, "pad_token_id": 0}
    trainer = made(CPOTrainer, beta=case["beta"], simpo_gamma=case["simpo_gamma"], **fields)
    return without_reference(trainer, task["logps"])


LOSSES = {"sigmoid": dpo, "ipo": dpo, "kto": kto, "orpo": orpo, "simpo": simpo}


if __name__ == "__main__":
    task = json.load(sys.stdin)
    print(json.dumps([LOSSES[case["loss_type"]](task, case) for case in task["cases"]]))
