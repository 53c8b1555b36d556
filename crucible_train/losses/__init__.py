"""What each loss computes: pure torch, one signature, one table.

A loss function gets a loss value, the log-probabilities of S positions, what their datums say of them and which datum
each belongs to; it gives one number a position, which the engine multiplies by the position's weight and sums.
Gradients flow through the log-probabilities alone. A loss of whole distributions gets those of student and teacher
instead, and gives its derivative as well.

Axes: S scored positions.
"""

from collections.abc import Mapping

from crucible_train.errors import ConfigError
from crucible_train.losses import (
    cispo,
    cross_entropy,
    divergence,
    dpo,
    dro,
    gspo,
    importance_sampling,
    ipo,
    kto,
    orpo,
    ppo,
    simpo,
)
from crucible_train.losses.base import DistributionLoss, LossFunction
from crucible_train.types import (
    CISPO,
    DPO,
    DRO,
    GSPO,
    IPO,
    KTO,
    ORPO,
    PPO,
    CrossEntropy,
    Divergence,
    ImportanceSampling,
    Loss,
    SimPO,
)

LOSSES: Mapping[type, LossFunction | DistributionLoss] = {
    CrossEntropy: cross_entropy.FUNCTION,
    ImportanceSampling: importance_sampling.FUNCTION,
    PPO: ppo.FUNCTION,
    CISPO: cispo.FUNCTION,
    DRO: dro.FUNCTION,
    GSPO: gspo.FUNCTION,
    DPO: dpo.FUNCTION,
    IPO: ipo.FUNCTION,
    KTO: kto.FUNCTION,
    ORPO: orpo.FUNCTION,
    SimPO: simpo.FUNCTION,
    Divergence: divergence.FUNCTION,
}


def loss_function(loss: Loss) -> LossFunction | DistributionLoss:
    """What computes a loss value.

    Raises:
        ConfigError: nothing does.
    """
    found = LOSSES.get(type(loss))
    if found is None:
        raise ConfigError(f"loss: {type(loss).__name__} is unknown; known are {', '.join(k.__name__ for k in LOSSES)}")
    return found


__all__ = ["LOSSES", "DistributionLoss", "LossFunction", "loss_function"]
