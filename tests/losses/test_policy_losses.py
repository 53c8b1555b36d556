"""Each loss by hand, by finite differences, and the identities between them."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from crucible_train.errors import ConfigError
from crucible_train.losses import LOSSES, LossFunction, loss_function
from crucible_train.types import CISPO, DRO, GSPO, PPO, CrossEntropy, ImportanceSampling, Loss, PolicyLoss

# Ratios 2, 1/2, 1 and 1.1 of the policy to the one that sampled.
LOGPROBS = [math.log(0.4), math.log(0.1), math.log(0.5), math.log(0.33)]
SAMPLED = [math.log(0.2), math.log(0.2), math.log(0.5), math.log(0.3)]
ADVANTAGES = [1.0, -2.0, 3.0, -1.0]
POLICY_LOSSES = [ImportanceSampling(), PPO(), CISPO(), DRO(), GSPO(clip_low=0.8, clip_high=1.2)]


def inputs(**more: list[float]) -> Mapping[str, Tensor]:
    given = {"logprobs": SAMPLED, "advantages": ADVANTAGES} | more
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in given.items()}


def positions(
    loss: Loss, at: list[float] | Tensor = LOGPROBS, datum: list[int] | None = None, **more: list[float]
) -> Tensor:
    """What each position adds, in float64, where the policy's log-probabilities are ``at``."""
    if not isinstance(at, Tensor):
        at = torch.tensor(at, dtype=torch.float64)
    return loss_function(loss).per_position(loss, at, inputs(**more), torch.tensor(datum or [0] * len(at)))


def gradient(loss: Loss, at: list[float] = LOGPROBS, **more: list[float]) -> list[float]:
    leaf = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    positions(loss, leaf, **more).sum().backward()
    return leaf.grad.tolist()


def test_importance_sampling_by_hand() -> None:
    """-r A with r = 2, 1/2, 1, 1.1 and A = 1, -2, 3, -1: -2, 1, -3, 1.1. Its derivative in logp is itself."""
    assert positions(ImportanceSampling()).tolist() == pytest.approx([-2, 1, -3, 1.1])
    assert gradient(ImportanceSampling()) == pytest.approx([-2, 1, -3, 1.1])


def test_ppo_by_hand() -> None:
    """Clipped to [0.8, 1.2]:

    r = 2,   A = 1:  min(2, 1.2) = 1.2, clipped, no gradient
    r = 1/2, A = -2: min(-1, -1.6) = -1.6, clipped, no gradient
    r = 1,   A = 3:  min(3, 3) = 3, gradient -3
    r = 1.1, A = -1: min(-1.1, -1.1) = -1.1, gradient 1.1
    """
    assert positions(PPO()).tolist() == pytest.approx([-1.2, 1.6, -3, 1.1])
    assert gradient(PPO()) == pytest.approx([0, 0, -3, 1.1])


def test_ppo_keeps_the_worse_side_unclipped() -> None:
    """r = 2 with A = -1 and r = 1/2 with A = 1 are worse unclipped: min(-2, -1.2) = -2 and min(1/2, 0.8) = 1/2."""
    found = positions(PPO(), LOGPROBS[:2], logprobs=SAMPLED[:2], advantages=[-1.0, 1.0])
    assert found.tolist() == pytest.approx([2, -0.5])


def test_cispo_by_hand() -> None:
    """Weights clip(r, 0.75, 1.5) = 1.5, 0.75, 1, 1.1; the loss is -weight logp A, its derivative -weight A."""
    loss = CISPO(clip_low=0.75, clip_high=1.5)
    weights = [1.5, 0.75, 1.0, 1.1]
    by_hand = [-w * x * a for w, x, a in zip(weights, LOGPROBS, ADVANTAGES, strict=True)]
    assert positions(loss).tolist() == pytest.approx(by_hand)
    assert gradient(loss) == pytest.approx([-1.5, 1.5, -3, 1.1])


def test_dro_by_hand() -> None:
    """-(logp A - beta/2 (log r)^2), beta = 0.1, log r = ln 2, -ln 2, 0, ln 1.1; the derivative is -A + beta log r."""
    ratios = [math.log(2), -math.log(2), 0.0, math.log(1.1)]
    by_hand = [-(x * a - 0.05 * d * d) for x, a, d in zip(LOGPROBS, ADVANTAGES, ratios, strict=True)]
    assert positions(DRO(beta=0.1)).tolist() == pytest.approx(by_hand)
    slopes = [-a + 0.1 * d for a, d in zip(ADVANTAGES, ratios, strict=True)]
    assert gradient(DRO(beta=0.1)) == pytest.approx(slopes)


def test_gspo_by_hand() -> None:
    """Two sequences of two tokens: s = exp((ln 2 - ln 2)/2) = 1 and exp((0 + ln 1.1)/2) = sqrt(1.1).

    Both lie within [0.8, 1.2], so the loss is -s A and its derivative in each token's own logp is -s A too.
    """
    s = math.sqrt(1.1)
    loss = GSPO(clip_low=0.8, clip_high=1.2)
    assert positions(loss, datum=[0, 0, 1, 1]).tolist() == pytest.approx([-1, 2, -3 * s, s])
    leaf = torch.tensor(LOGPROBS, dtype=torch.float64, requires_grad=True)
    positions(loss, leaf, datum=[0, 0, 1, 1]).sum().backward()
    assert leaf.grad.tolist() == pytest.approx([-1, 2, -3 * s, s])


def test_gspo_clips_whole_sequences() -> None:
    """s = exp(ln(2)/2) = 1.414 > 1.2 over a sequence of r = 2 and r = 1: with A = 1 clipped to -1.2, no gradient."""
    loss = GSPO(clip_low=0.8, clip_high=1.2)
    given = {"logprobs": [SAMPLED[0], SAMPLED[2]], "advantages": [1.0, 1.0]}
    assert positions(loss, [LOGPROBS[0], LOGPROBS[2]], **given).tolist() == pytest.approx([-1.2, -1.2])
    assert gradient(loss, [LOGPROBS[0], LOGPROBS[2]], **given) == [0, 0]


def test_gspo_takes_its_mean_over_the_mask() -> None:
    """Masked to the second and third token: s = exp((-ln 2 + 0)/2) = 0.7071, within [0.5, 1.2]."""
    loss = GSPO(clip_low=0.5, clip_high=1.2)
    found = positions(loss, sequence_ratio_mask=[0.0, 1.0, 1.0, 0.0])
    assert found.tolist() == pytest.approx([-math.sqrt(0.5) * a for a in ADVANTAGES])


@pytest.mark.parametrize("loss", [*POLICY_LOSSES, CrossEntropy()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("kl", [{}, {"kl_coef": 0.3}, {"kl_coef": 0.3, "kl_estimator": "k1"}], ids=str)
def test_gradients_are_finite_differences(loss: Loss, kl: dict[str, object]) -> None:
    """Where a formula stops a gradient, the difference is that of the formula with the stopped part held still."""
    if isinstance(loss, PolicyLoss):
        loss = type(loss)(**{name: getattr(loss, name) for name in loss.__dataclass_fields__} | kl)
    reference = {"reference_logprobs": [math.log(0.25), math.log(0.3), math.log(0.4), math.log(0.33)]}
    found, step = gradient(loss, **reference), 1e-6

    def still(logprobs: list[float]) -> float:
        """The loss as a function whose plain derivative is the wanted one."""
        given = inputs(**reference)
        here = torch.tensor(LOGPROBS, dtype=torch.float64)
        x = torch.tensor(logprobs, dtype=torch.float64)
        penalty = 0.0
        if isinstance(loss, PolicyLoss) and loss.kl_coef:
            d = x - given["reference_logprobs"]
            penalty = loss.kl_coef * (d if loss.kl_estimator == "k1" else (-d).exp() - 1 + d).sum()
        if isinstance(loss, CISPO):
            weight = (here - given["logprobs"]).exp().clamp(loss.clip_low, loss.clip_high)
            return float(-(weight * x * given["advantages"]).sum() + penalty)
        if isinstance(loss, GSPO):
            ratio = ((here - given["logprobs"]).mean() + x - here).exp()
            clipped = ratio.clamp(loss.clip_low, loss.clip_high)
            return float(-torch.minimum(ratio * given["advantages"], clipped * given["advantages"]).sum() + penalty)
        return float(positions(loss, x, **reference).sum())

    for place in range(len(LOGPROBS)):
        up, down = list(LOGPROBS), list(LOGPROBS)
        up[place] += step
        down[place] -= step
        assert found[place] == pytest.approx((still(up) - still(down)) / (2 * step), abs=1e-6)


def test_importance_sampling_at_ratio_one_has_the_gradient_of_reinforce() -> None:
    """-A dlogp."""
    assert gradient(ImportanceSampling(), logprobs=LOGPROBS) == pytest.approx([-a for a in ADVANTAGES])


def test_ppo_with_thresholds_zero_and_infinity_is_importance_sampling() -> None:
    wide = PPO(clip_low=0.0, clip_high=math.inf)
    assert torch.equal(positions(wide), positions(ImportanceSampling()))
    assert gradient(wide) == gradient(ImportanceSampling())


def test_dro_at_beta_zero_is_advantage_weighted_cross_entropy() -> None:
    weighted = positions(CrossEntropy()) * torch.tensor(ADVANTAGES, dtype=torch.float64)
    assert torch.equal(positions(DRO(beta=0.0)), weighted)


def test_divergences_by_hand() -> None:
    """d = logp - logp_ref = ln 2, 0: k1 gives ln 2 and 0, k3 gives 1/2 - 1 + ln 2 and 0."""
    given = {"logprobs": LOGPROBS[:2], "advantages": [0.0, 0.0], "reference_logprobs": [math.log(0.2), math.log(0.1)]}
    for estimator, expected in (("k1", math.log(2)), ("k3", math.log(2) - 0.5)):
        found = positions(ImportanceSampling(kl_coef=2.0, kl_estimator=estimator), LOGPROBS[:2], **given)
        assert found.tolist() == pytest.approx([2 * expected, 0])


def test_k3_is_never_negative_and_estimates_the_divergence() -> None:
    draw = np.random.default_rng(0)
    p, q = draw.dirichlet(np.ones(6)), draw.dirichlet(np.ones(6))
    loss = ImportanceSampling(kl_coef=1.0)
    given = {"logprobs": np.log(p).tolist(), "advantages": [0.0] * 6, "reference_logprobs": np.log(q).tolist()}
    k3 = positions(loss, np.log(p).tolist(), **given).numpy()
    assert (k3 >= 0).all()
    assert float(p @ k3) == pytest.approx(float(p @ np.log(p / q)))


def test_a_penalty_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference_logprobs"):
        positions(PPO(kl_coef=0.1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PPO(clip_low=1.3, clip_high=1.2),
        lambda: CISPO(clip_low=-0.1),
        lambda: GSPO(clip_low=2.0),
        lambda: DRO(beta=-1.0),
        lambda: ImportanceSampling(kl_coef=-0.1),
        lambda: PPO(kl_coef=-0.1),
    ],
)
def test_values_out_of_range_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"clip_low|beta|kl_coef"):
        make()


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ConfigError, match=r"str is unknown; known are CrossEntropy, .*GSPO"):
        loss_function("ppo")
    functions = [function for function in LOSSES.values() if isinstance(function, LossFunction)]
    assert all(function.scope in ("token", "datum", "pair") for function in functions)
