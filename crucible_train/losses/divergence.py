"""Generalised divergence of two distributions, and its derivative by the student's logits.

With q = softmax(z), any f(q) has df/dz_v = q_v (f_v - sum_u q_u f_u), where f_v = df/dq_v up to a constant. So

    KL(q || p)                              q (d - sum q d),             d = log q - log p
    KL(p || q)                              q - p
    beta KL(p || m) + (1-beta) KL(q || m)   q (g - sum q g),             g = (1-beta) (log q - log m)

the last because df/dq = (1-beta) (log q - log m + 1) - (1-beta) (beta p + (1-beta) q) / m, and m cancels the fraction.

Axes: S positions, V vocabulary.
"""

import math

import torch
from torch import Tensor

from crucible_train.losses.base import DistributionLoss
from crucible_train.types import Divergence


def per_row(loss: Divergence, student_SV: Tensor, teacher_SV: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence of each position, and the derivative."""
    if loss.beta == 1.0:
        return _reverse(student_SV, teacher_SV)
    if loss.beta == 0.0:
        return _forward(student_SV, teacher_SV)
    return _between(loss.beta, student_SV, teacher_SV)


def _reverse(student_SV: Tensor, teacher_SV: Tensor) -> tuple[Tensor, Tensor]:
    difference_SV = teacher_SV.neg_().add_(student_SV)
    probabilities_SV = student_SV.exp_()
    value_S = _row_sums(probabilities_SV, difference_SV)
    return value_S, difference_SV.sub_(value_S[:, None]).mul_(probabilities_SV)


def _forward(student_SV: Tensor, teacher_SV: Tensor) -> tuple[Tensor, Tensor]:
    teachers_SV = teacher_SV.exp()
    value_S = _row_sums(teachers_SV, teacher_SV.sub_(student_SV))
    return value_S, torch.sub(student_SV.exp_(), teachers_SV, out=teacher_SV)


def _between(beta: float, student_SV: Tensor, teacher_SV: Tensor) -> tuple[Tensor, Tensor]:
    mixed_SV = torch.logaddexp(teacher_SV + math.log(beta), student_SV + math.log1p(-beta))
    teachers_SV = teacher_SV.exp()
    value_S = _row_sums(teachers_SV, teacher_SV.sub_(mixed_SV)).mul_(beta)
    slope_SV = torch.sub(student_SV, mixed_SV, out=mixed_SV).mul_(1 - beta)
    probabilities_SV = student_SV.exp_()
    mean_S = _row_sums(probabilities_SV, slope_SV)
    return value_S.add_(mean_S), slope_SV.sub_(mean_S[:, None]).mul_(probabilities_SV)


def _row_sums(left_SV: Tensor, right_SV: Tensor) -> Tensor:
    """``sum_v left right`` of each row, with no table for the products."""
    return torch.bmm(left_SV[:, None, :], right_SV[:, :, None])[:, 0, 0]


FUNCTION = DistributionLoss(per_row)
