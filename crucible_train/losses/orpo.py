"""``-m_w - beta log s(o_w - o_l)``, with the log odds ``o = m - log(1 - exp(m))``."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from crucible_train.losses.base import Inputs, LossFunction
from crucible_train.losses.pairs import PAIR, PAIR_INPUTS, Pairs, margin
from crucible_train.types import ORPO


def per_position(loss: ORPO, logprobs_S: Tensor, inputs: Inputs, _datum_S: Tensor) -> Tensor:
    """The negative log-likelihood of the chosen completion, and the logistic loss of the odds ratio."""
    pairs = Pairs.of(inputs)
    mean_P2 = pairs.means(logprobs_S)
    odds_P2 = mean_P2 - log_one_less_exp(mean_P2)
    return pairs.shared_out(-mean_P2[:, 1] - loss.beta * logsigmoid(margin(odds_P2)))


def log_one_less_exp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` for x below 0; a probability that rounds to 1 is taken for the largest number below it."""
    return torch.log(-torch.expm1(x.clamp(max=-torch.finfo(x.dtype).eps / 2)))


FUNCTION = LossFunction(per_position, "pair", PAIR_INPUTS, coupled_by=PAIR)
