"""``c (1 - s(beta side (d_y - z)))``, for each completion alone."""

import torch
from torch import Tensor

from crucible_train.losses.base import REFERENCE, Inputs, LossFunction
from crucible_train.losses.pairs import REFERENCE_POINT, SIDE, log_ratio_to_reference
from crucible_train.types import KTO


def per_position(loss: KTO, logprobs_S: Tensor, inputs: Inputs, datum_S: Tensor) -> Tensor:
    """What is lost of the value of each completion, shared out over its positions."""
    _, place_S = torch.unique(datum_S, return_inverse=True)
    counts_D = torch.bincount(place_S)
    log_ratio_S = log_ratio_to_reference(logprobs_S, inputs)
    log_ratio_D = log_ratio_S.new_zeros(len(counts_D)).index_add(0, place_S, log_ratio_S)
    side_S = inputs[SIDE]
    weight_S = torch.where(side_S > 0, loss.desirable_weight, loss.undesirable_weight)
    advantage_S = side_S * (log_ratio_D[place_S] - inputs[REFERENCE_POINT])
    return weight_S * torch.sigmoid(-loss.beta * advantage_S) / counts_D[place_S]


FUNCTION = LossFunction(per_position, "datum", ("weights", SIDE, REFERENCE, REFERENCE_POINT))
