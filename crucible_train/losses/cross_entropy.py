"""``-logp``."""

from torch import Tensor

from crucible_train.losses.base import Inputs, LossFunction
from crucible_train.types import CrossEntropy


def per_position(_loss: CrossEntropy, logprobs_S: Tensor, _inputs: Inputs, _datum_S: Tensor) -> Tensor:
    """The negative log-probability."""
    return -logprobs_S


FUNCTION = LossFunction(per_position, "token", ("weights",), takes_several=True)
