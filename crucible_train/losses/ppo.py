"""``-min(r A, clip(r, low, high) A)``."""

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
from crucible_train.types import PPO


def per_position(loss: PPO, logprobs_S: Tensor, inputs: Inputs, _datum_S: Tensor) -> Tensor:
    """The clipped surrogate objective."""
    ratio_S = log_ratio(logprobs_S, inputs).exp()
    surrogate_S = clipped_surrogate(ratio_S, inputs["advantages"], loss.clip_low, loss.clip_high)
    return with_kl(loss, surrogate_S, logprobs_S, inputs)


FUNCTION = LossFunction(per_position, "token", POLICY_INPUTS, (REFERENCE,), "advantages")
