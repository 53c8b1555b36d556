"""Losses as values. The backend maps each to a function; every loss is a sum over tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """``-sum_n w_n * logp_n`` over ``target_tokens`` with ``weights``, both of shape (N,)."""


@dataclass(frozen=True, slots=True)
class CustomLoss:
    """Any differentiable function of the targets' log-probabilities.

    ``function(logprobs_D, inputs_D)`` gets one float32 tensor (N_d,) a datum, 0 where ``weights`` is 0, and the datum's
    ``loss_fn_inputs`` as tensors; it returns the loss to minimise, a sum over tokens, and metrics to report.
    """

    function: Callable[[Sequence[Any], Sequence[Mapping[str, Any]]], tuple[Any, Mapping[str, float]]]


Loss = CrossEntropy | CustomLoss


@dataclass(frozen=True, slots=True)
class AdamParams:
    """The values of one AdamW step (Loshchilov and Hutter, arXiv 1711.05101).

    Attributes:
        learning_rate: above 0.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: added to the root of the second moment, above 0.
        weight_decay: decoupled decay, 0 or more.
        grad_clip_norm: the gradient is scaled down to this global L2 norm; 0 leaves it as it is.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.learning_rate < 0 or self.weight_decay < 0 or self.grad_clip_norm < 0 or self.eps <= 0:
            raise ValueError(f"an Adam value is out of its range: {self}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 must lie in [0, 1): {self.beta1}, {self.beta2}")
