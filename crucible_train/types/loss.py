"""Losses as values. The backend maps each to a function; every loss is a sum over tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

KLEstimator = Literal["k1", "k3"]


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """``-sum_n w_n * logp_n`` over ``target_tokens`` with ``weights``, both of shape (N,).

    Both may have shape (N, K): soft targets, ``-sum_n sum_k w_nk * logp_nk``, such as a teacher's K likeliest tokens
    with their probabilities. One of weight 0 is none, so positions need not have as many.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """What the losses of reinforcement learning share.

    A datum gives, each of shape (N,): ``target_tokens``; ``logprobs``, those of the policy that sampled them;
    ``advantages``; and ``weights``, by which each position's loss is multiplied. Without ``weights`` every position
    whose advantage is not 0 counts once. With ``kl_coef`` above 0, ``kl_coef`` times the estimate of the divergence
    from ``reference_logprobs`` is added at each position: with d = logp - logp_ref,

        k1 = d                     unbiased, but its gradient is not that of the divergence: better in the advantage
        k3 = exp(-d) - 1 + d       never negative (Schulman, "Approximating KL divergence", 2020)

    Notation of the formulas: r = exp(logp - logprobs), A the advantage; sums run over positions.
    """

    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.kl_coef < 0:
            raise ValueError(f"kl_coef must be 0 or more, not {self.kl_coef}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceSampling(PolicyLoss):
    """``-sum r A``: at r = 1 its gradient is that of REINFORCE (Williams, 1992)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clipped(PolicyLoss):
    clip_low: float = 0.8
    clip_high: float = 1.2

    def __post_init__(self) -> None:
        """Check the ranges."""
        super(_Clipped, self).__post_init__()
        if not 0 <= self.clip_low <= self.clip_high:
            raise ValueError(f"0 <= clip_low <= clip_high is needed, not {self.clip_low} and {self.clip_high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO(_Clipped):
    """``-sum min(r A, clip(r, clip_low, clip_high) A)`` (Schulman et al., arXiv 1707.06347).

    The bounds are of the ratio itself; infinity is allowed above.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class CISPO(_Clipped):
    """``-sum stopgrad(clip(r, clip_low, clip_high)) logp A`` (MiniMax-M1, arXiv 2506.13585).

    No position loses its gradient. A ``clip_low`` above 0 can let the divergence run away: it keeps weight on answers
    that the policy has left.
    """

    clip_low: float = 0.0
    clip_high: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DRO(PolicyLoss):
    """``-sum (logp A - beta/2 (logp - logprobs)^2)`` (Richemond et al., arXiv 2405.19107)."""

    beta: float = 0.05

    def __post_init__(self) -> None:
        """Check the ranges."""
        super(DRO, self).__post_init__()
        if self.beta < 0:
            raise ValueError(f"beta must be 0 or more, not {self.beta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GSPO(_Clipped):
    """``-sum min(s A, clip(s, clip_low, clip_high) A)`` (Zheng et al., arXiv 2507.18071), one ratio a sequence.

        s_n = stopgrad(s) exp(logp_n - stopgrad(logp_n)),    s = exp(mean over the sequence of (logp - logprobs))

    The mean runs over the datum's positions whose ``sequence_ratio_mask`` (N,) is not 0; without one, over those that
    count. The default bounds are the paper's.
    """

    clip_low: float = 1 - 3e-4
    clip_high: float = 1 + 4e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """``sum_n w_n D(p_n, q_n)`` over the whole vocabulary: q is trained, p the teacher, both at ``temperature``.

        beta = 0        D = KL(p || q)                              forward: q is to be wherever p is
        beta = 1        D = KL(q || p)                              reverse: q is to be nowhere where p is not
        in between      D = beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q

    as in generalised knowledge distillation (Agarwal et al., arXiv 2306.13649). Nothing makes up for the temperature:
    gradients fall with its square (Hinton et al., arXiv 1503.02531). A datum gives ``target_tokens`` and ``weights``,
    both (N,); ``cross_entropy_coef * -logp_n`` of the targets, at temperature 1, is added at each position. Where its
    ``teacher_input`` says what the teacher reads instead, ``teacher_positions`` (N,) tell where it stands there. The
    sum of D alone is reported as ``divergence``.

    Attributes:
        teacher: a sampling client of a model in this process, whose vocabulary is the same; ids that only one of the
            two models has, which no tokenizer gives, are left out of both.
        beta: in [0, 1].
        temperature: above 0.
        cross_entropy_coef: 0 or more.
    """

    teacher: Any
    beta: float = 1.0
    temperature: float = 1.0
    cross_entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], not {self.beta}")
        if self.temperature <= 0 or self.cross_entropy_coef < 0:
            raise ValueError(f"a value is out of its range: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceLoss:
    """What the losses over preferences share.

    A datum is one side of a pair: a prompt with its chosen or its rejected completion. It gives, each of shape (N,):
    ``target_tokens``; ``weights``, not 0 where a completion's token is the target; ``side``, 1 in a chosen completion
    and -1 in a rejected one; and, but for KTO, ``pair``, the number of its pair among those of the call, 0 to 2^24,
    the same at every position. Both sides of a pair must be in one call. Losses are sums over pairs, each multiplied by
    the mean of the weights of its positions.

    Notation of the formulas: w the chosen completion and l the rejected one; |y| how many positions count; sums over
    these positions: d_y = sum (logp - reference_logprobs), m_y = sum logp / |y|; s the logistic function.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO(PreferenceLoss):
    """``-(1 - e) log s(beta (d_w - d_l)) - e log s(-beta (d_w - d_l))`` (Rafailov et al., arXiv 2305.18290).

    e is ``label_smoothing``, the share of pairs whose label is taken to be wrong: in [0, 0.5). A datum also gives
    ``reference_logprobs`` (N,).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super(DPO, self).__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 0.5), not {self.label_smoothing}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IPO(PreferenceLoss):
    """``(d_w / |w| - d_l / |l| - 1 / (2 beta))^2`` (Azar et al., arXiv 2310.12036, equation 17).

    beta is the paper's tau. Log-probabilities are means over the completion's tokens, as in the authors' experiments: a
    sum would ask of a long completion what it asks of a short one. A datum also gives ``reference_logprobs`` (N,).
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class KTO(PreferenceLoss):
    """``c (1 - s(beta side (d_y - z)))`` for each datum alone (Ethayarajh et al., arXiv 2402.01306).

    c is ``desirable_weight`` where ``side`` is 1, ``undesirable_weight`` where it is -1. z is the reference point, an
    estimate of the divergence from the reference, which has no gradient. A datum also gives ``reference_point`` (N,), z
    at every position, and ``reference_logprobs`` (N,); a ``pair`` is not read.
    """

    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super(KTO, self).__post_init__()
        if self.desirable_weight < 0 or self.undesirable_weight < 0:
            raise ValueError(f"a weight is below 0: {self.desirable_weight}, {self.undesirable_weight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ORPO(PreferenceLoss):
    """``-m_w - beta log s(o_w - o_l)``, o = m - log(1 - exp(m)) (Hong et al., arXiv 2403.07691).

    o is the log odds of a completion, taken to be as likely as the geometric mean of its tokens; beta is the paper's
    lambda.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPO(PreferenceLoss):
    """``-log s(beta (m_w - m_l) - gamma)`` (Meng et al., arXiv 2405.14734)."""

    beta: float = 2.0
    gamma: float = 1.0


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """``-log sigmoid(r_chosen - r_rejected)`` over pairs (Bradley and Terry, 1952), for models with a scalar head.

    Datums come in pairs: the chosen one, then the rejected one. A datum's reward is read at its last position; where
    the chosen one gives ``weights`` (N,), the last of them multiplies the pair's loss.
    """


@dataclass(frozen=True, slots=True)
class CustomLoss:
    """Any differentiable function of the targets' log-probabilities.

    ``function(logprobs_D, inputs_D)`` gets one float32 tensor (N_d,) a datum, 0 where ``weights`` is 0, and the datum's
    ``loss_fn_inputs`` as tensors; it returns the loss to minimise, a sum over tokens, and metrics to report.
    """

    function: Callable[[Sequence[Any], Sequence[Mapping[str, Any]]], tuple[Any, Mapping[str, float]]]


AnyPreferenceLoss = PreferenceLoss | BradleyTerry
"""What preferences are learned by: the log-probabilities of a language model, or the rewards of a scalar head."""
Loss = CrossEntropy | PolicyLoss | Divergence | AnyPreferenceLoss | CustomLoss


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
