"""``-min(s A, clip(s, low, high) A)``, with one ratio s a sequence."""

import torch
from torch import Tensor

from crucible_train.losses.base import (
    POLICY_INPUTS,
    REFERENCE,
    Inputs,
    LossFunction,
    clipped_surrogate,
    log_ratio,
    with_kl,
)
from crucible_train.types import GSPO

MASK = "sequence_ratio_mask"


def per_position(loss: GSPO, logprobs_S: Tensor, inputs: Inputs, datum_S: Tensor) -> Tensor:
    """The clipped surrogate of the sequence's ratio; every token's gradient flows through its own log-probability."""
    ratio_S = (_mean_log_ratio(logprobs_S.detach(), inputs, datum_S) + logprobs_S - logprobs_S.detach()).exp()
    surrogate_S = clipped_surrogate(ratio_S, inputs["advantages"], loss.clip_low, loss.clip_high)
    return with_kl(loss, surrogate_S, logprobs_S, inputs)


def _mean_log_ratio(logprobs_S: Tensor, inputs: Inputs, datum_S: Tensor) -> Tensor:
    """The mean of ``log r`` over each position's datum."""
    is_counted_S = inputs[MASK].ne(0).to(logprobs_S.dtype) if MASK in inputs else torch.ones_like(logprobs_S)
    num_datums = int(datum_S.max()) + 1 if datum_S.numel() else 0
    totals = logprobs_S.new_zeros(num_datums).index_add_(0, datum_S, log_ratio(logprobs_S, inputs) * is_counted_S)
    counts = logprobs_S.new_zeros(num_datums).index_add_(0, datum_S, is_counted_S)
    return (totals / counts.clamp(min=1))[datum_S]


FUNCTION = LossFunction(per_position, "datum", POLICY_INPUTS, (REFERENCE, MASK), "advantages", (MASK,))
