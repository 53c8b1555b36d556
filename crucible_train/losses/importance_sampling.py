"""``-r A``."""

from torch import Tensor

from crucible_train.losses.base import POLICY_INPUTS, REFERENCE, Inputs, LossFunction, log_ratio, with_kl
from crucible_train.types import ImportanceSampling


def per_position(loss: ImportanceSampling, logprobs_S: Tensor, inputs: Inputs, _datum_S: Tensor) -> Tensor:
    """The importance-weighted policy gradient."""
    surrogate_S = -log_ratio(logprobs_S, inputs).exp() * inputs["advantages"]
    return with_kl(loss, surrogate_S, logprobs_S, inputs)


FUNCTION = LossFunction(per_position, "token", POLICY_INPUTS, (REFERENCE,), "advantages")
