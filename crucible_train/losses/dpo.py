"""``-(1 - e) log s(beta (d_w - d_l)) - e log s(-beta (d_w - d_l))``."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from crucible_train.losses.base import REFERENCE, Inputs, LossFunction
from crucible_train.losses.pairs import PAIR, PAIR_INPUTS, Pairs, log_ratio_to_reference, margin
from crucible_train.types import DPO


def per_position(loss: DPO, logprobs_S: Tensor, inputs: Inputs, _datum_S: Tensor) -> Tensor:
    """The logistic loss of the difference of implicit rewards."""
    pairs = Pairs.of(inputs)
    logits_P = loss.beta * margin(pairs.sums(log_ratio_to_reference(logprobs_S, inputs)))
    smoothing = loss.label_smoothing
    return pairs.shared_out(-(1 - smoothing) * logsigmoid(logits_P) - smoothing * logsigmoid(-logits_P))


FUNCTION = LossFunction(per_position, "pair", (*PAIR_INPUTS, REFERENCE), coupled_by=PAIR)
