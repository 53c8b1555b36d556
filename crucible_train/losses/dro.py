"""``-(logp A - beta/2 (logp - logprobs)^2)``."""

from torch import Tensor

from crucible_train.losses.base import POLICY_INPUTS, REFERENCE, Inputs, LossFunction, log_ratio, with_kl
from crucible_train.types import DRO


def per_position(loss: DRO, logprobs_S: Tensor, inputs: Inputs, _datum_S: Tensor) -> Tensor:
    """The advantage-weighted log-probability, held near the sampling policy by a quadratic."""
    surrogate_S = -(logprobs_S * inputs["advantages"] - 0.5 * loss.beta * log_ratio(logprobs_S, inputs).square())
    return with_kl(loss, surrogate_S, logprobs_S, inputs)


FUNCTION = LossFunction(per_position, "token", POLICY_INPUTS, (REFERENCE,))
