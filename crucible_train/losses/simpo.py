"""``-log s(beta (m_w - m_l) - gamma)``."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from crucible_train.losses.base import Inputs, LossFunction
from crucible_train.losses.pairs import PAIR, PAIR_INPUTS, Pairs, margin
from crucible_train.types import SimPO


def per_position(loss: SimPO, logprobs_S: Tensor, inputs: Inputs, _datum_S: Tensor) -> Tensor:
    """The logistic loss of the difference of mean log-probabilities, less the margin that is asked for."""
    pairs = Pairs.of(inputs)
    return pairs.shared_out(-logsigmoid(loss.beta * margin(pairs.means(logprobs_S)) - loss.gamma))


FUNCTION = LossFunction(per_position, "pair", PAIR_INPUTS, coupled_by=PAIR)
