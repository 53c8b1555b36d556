"""``(d_w / |w| - d_l / |l| - 1 / (2 beta))^2``."""

from torch import Tensor

from crucible_train.losses.base import REFERENCE, Inputs, LossFunction
from crucible_train.losses.pairs import PAIR, PAIR_INPUTS, Pairs, log_ratio_to_reference, margin
from crucible_train.types import IPO


def per_position(loss: IPO, logprobs_S: Tensor, inputs: Inputs, _datum_S: Tensor) -> Tensor:
    """The squared distance of the margin from what beta asks for."""
    pairs = Pairs.of(inputs)
    margin_P = margin(pairs.means(log_ratio_to_reference(logprobs_S, inputs)))
    return pairs.shared_out((margin_P - 1 / (2 * loss.beta)) ** 2)


FUNCTION = LossFunction(per_position, "pair", (*PAIR_INPUTS, REFERENCE), coupled_by=PAIR)
