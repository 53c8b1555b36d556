"""``-stopgrad(clip(r, low, high)) logp A``."""

from torch import Tensor

from crucible_train.losses.base import POLICY_INPUTS, REFERENCE, Inputs, LossFunction, log_ratio, with_kl
from crucible_train.types import CISPO


def per_position(loss: CISPO, logprobs_S: Tensor, inputs: Inputs, _datum_S: Tensor) -> Tensor:
    """The policy gradient with clipped importance weights."""
    weight_S = log_ratio(logprobs_S, inputs).exp().clamp(loss.clip_low, loss.clip_high).detach()
    return with_kl(loss, -weight_S * logprobs_S * inputs["advantages"], logprobs_S, inputs)


FUNCTION = LossFunction(per_position, "token", POLICY_INPUTS, (REFERENCE,), "advantages")
