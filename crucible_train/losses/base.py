"""The one signature of losses, and what those of reinforcement learning share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from crucible_train.types import PolicyLoss

Inputs = Mapping[str, Tensor]
PerPosition = Callable[[Any, Tensor, Inputs, Tensor], Tensor]
"""(loss value, logprobs_S, inputs by name each (S,), datum_S) -> loss_S."""


@dataclass(frozen=True, slots=True)
class LossFunction:
    """How a loss is computed and what it needs.

    Attributes:
        per_position: the function.
        scope: ``token`` where a position's loss depends on that position alone, so that its gradient can be formed with
            the logits at hand; ``datum`` where it depends on the whole datum; ``pair`` where it depends on all datums
            that have the same value of ``coupled_by``, which are then given together.
        required: the inputs a datum must have besides ``target_tokens``.
        optional: those it may have besides ``weights``.
        also_scored: inputs whose values other than 0 mark positions that the loss reads whatever their weight.
        counted_by: the input whose values other than 0 say which positions count where there are no ``weights``; None
            counts all.
        coupled_by: the input that numbers the pair a datum belongs to, for ``pair``.
        takes_several: whether a position may have several targets, each with its weight: (N, K).
    """

    per_position: PerPosition
    scope: Literal["token", "datum", "pair"]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    counted_by: str | None = None
    also_scored: tuple[str, ...] = ()
    takes_several: bool = False
    coupled_by: str | None = None


PerRow = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(loss value, student_SV, teacher_SV) -> (loss_S, slope_SV): both distributions come as log-probabilities in buffers.

``slope_SV`` is the derivative by the logits that the student's distribution is the softmax of. On return the student's
buffer holds its probabilities; the teacher's may hold anything.
"""


@dataclass(frozen=True, slots=True)
class DistributionLoss:
    """A loss of whole distributions: the student's and the teacher's at the same position.

    Attributes:
        per_row: the function.
        required, optional, counted_by, also_scored, takes_several, coupled_by: as in ``LossFunction``.
    """

    per_row: PerRow
    required: tuple[str, ...] = ("weights",)
    optional: tuple[str, ...] = ()
    counted_by: str | None = None
    also_scored: tuple[str, ...] = ()
    takes_several: bool = False
    coupled_by: str | None = None


POLICY_INPUTS = ("logprobs", "advantages")
REFERENCE = "reference_logprobs"


def log_ratio(logprobs_S: Tensor, inputs: Inputs) -> Tensor:
    """``log r``: the policy's log-probability less that of the policy that sampled."""
    return logprobs_S - inputs["logprobs"]


def with_kl(loss: PolicyLoss, surrogate_S: Tensor, logprobs_S: Tensor, inputs: Inputs) -> Tensor:
    """The surrogate with the penalty on the divergence from the reference.

    Raises:
        ValueError: there is a penalty but no reference.
    """
    if not loss.kl_coef:
        return surrogate_S
    if REFERENCE not in inputs:
        raise ValueError(f"kl_coef is {loss.kl_coef}, but a datum has no {REFERENCE}")
    difference_S = logprobs_S - inputs[REFERENCE]
    estimate_S = difference_S if loss.kl_estimator == "k1" else torch.expm1(-difference_S) + difference_S
    return surrogate_S + loss.kl_coef * estimate_S


def clipped_surrogate(ratio_S: Tensor, advantages_S: Tensor, low: float, high: float) -> Tensor:
    """``-min(r A, clip(r, low, high) A)``."""
    return -torch.minimum(ratio_S * advantages_S, ratio_S.clamp(low, high) * advantages_S)
