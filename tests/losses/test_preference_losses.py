"""Each loss over preferences by hand, by finite differences, and beside an implementation written from its paper."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crucible_train.losses import loss_function
from crucible_train.types import DPO, IPO, KTO, ORPO, PreferenceLoss, SimPO

# One pair. The chosen completion has two tokens of probabilities 1/2 and 1/4, the rejected one a token of 1/8; the
# reference gives 1/4, 1/4 and 1/4. So d_w = ln 2 + 0 = ln 2, d_l = -ln 2; m_w = ln(1/8)/2 = -1.5 ln 2, m_l = -3 ln 2.
LN2 = math.log(2)
LOGPROBS = [-LN2, -2 * LN2, -3 * LN2]
PAIR: Mapping[str, list[float]] = {
    "pair": [0.0, 0.0, 0.0],
    "side": [1.0, 1.0, -1.0],
    "reference_logprobs": [-2 * LN2] * 3,
    "reference_point": [0.0] * 3,
}
LOSSES: list[PreferenceLoss] = [
    DPO(beta=0.3),
    DPO(beta=0.3, label_smoothing=0.2),
    IPO(beta=0.4),
    KTO(beta=0.3, desirable_weight=1.5),
    ORPO(beta=0.2),
    SimPO(beta=2.0, gamma=0.6),
]


def positions(
    loss: PreferenceLoss, at: list[float] | Tensor = LOGPROBS, datum: list[int] | None = None, **more: list[float]
) -> Tensor:
    """What each position adds, in float64, where the policy's log-probabilities are ``at``."""
    if not isinstance(at, Tensor):
        at = torch.tensor(at, dtype=torch.float64)
    inputs = {name: torch.tensor(values, dtype=torch.float64) for name, values in (PAIR | more).items()}
    return loss_function(loss).per_position(loss, at, inputs, torch.tensor(datum or [0, 0, 1]))


def gradient(loss: PreferenceLoss, **more: Any) -> list[float]:
    leaf = torch.tensor(LOGPROBS, dtype=torch.float64, requires_grad=True)
    positions(loss, leaf, **more).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.tolist()


def test_dpo_by_hand() -> None:
    """beta = 1/2: beta (d_w - d_l) = ln 2, s(ln 2) = 2/3, so -log(2/3) = 0.405465, a third of it at each position.

    The derivative in d_w is -beta (1 - s) = -1/6, which is that of each chosen token; +1/6 for the rejected one.
    """
    found = positions(DPO(beta=0.5))
    assert found.sum().item() == pytest.approx(math.log(1.5))
    assert found.tolist() == pytest.approx([math.log(1.5) / 3] * 3)
    assert gradient(DPO(beta=0.5)) == pytest.approx([-1 / 6, -1 / 6, 1 / 6])


def test_dpo_with_label_smoothing_by_hand() -> None:
    """beta = 1/2, e = 1/4: -3/4 log(2/3) - 1/4 log(1/3) = 3/4 0.405465 + 1/4 1.098612 = 0.578752.

    The derivative in d_w is beta (s - (1 - e)) = (2/3 - 3/4) / 2 = -1/24.
    """
    loss = DPO(beta=0.5, label_smoothing=0.25)
    assert positions(loss).sum().item() == pytest.approx(0.578752, abs=1e-6)
    assert gradient(loss) == pytest.approx([-1 / 24, -1 / 24, 1 / 24])


def test_ipo_by_hand() -> None:
    """Means over tokens: ln 2 / 2 + ln 2 = 1.039721; beta = 1 asks for 1/2: (0.539721)^2 = 0.291299.

    The derivative in d_w / |w| is 2 * 0.539721; half of that for each of the two chosen tokens.
    """
    assert positions(IPO(beta=1.0)).sum().item() == pytest.approx(0.291299, abs=1e-6)
    assert gradient(IPO(beta=1.0)) == pytest.approx([0.539721, 0.539721, -1.079442], abs=1e-6)


def test_kto_by_hand() -> None:
    """beta = 1, z = 0. Desirable: 1 - s(ln 2) = 1/3. Undesirable, weight 2: 2 (1 - s(-(-ln 2))) = 2/3.

    The derivative is -c beta side s (1 - s) = -2/9 for each desirable token and 4/9 for the undesirable one.
    """
    loss = KTO(beta=1.0, undesirable_weight=2.0)
    assert positions(loss).tolist() == pytest.approx([1 / 6, 1 / 6, 2 / 3])
    assert gradient(loss) == pytest.approx([-2 / 9, -2 / 9, 4 / 9])


def test_kto_measures_from_its_reference_point() -> None:
    """z = ln 2 and beta = 1: the desirable one loses 1 - s(0) = 1/2, the undesirable one 1 - s(2 ln 2) = 1/5."""
    found = positions(KTO(beta=1.0), reference_point=[LN2] * 3)
    assert found.tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 5])


def test_orpo_by_hand() -> None:
    """Mean probabilities 2^-1.5 = 0.353553 and 1/8: odds 0.546918 and 0.142857, their ratio 3.828427 = 1 + 2 sqrt(2).

    -m_w = 1.039721; s(log ratio) = 3.828427 / 4.828427, so -beta log s = 0.232066 with beta = 1.
    """
    ratio = 1 + 2 * math.sqrt(2)
    assert positions(ORPO(beta=1.0)).sum().item() == pytest.approx(1.5 * LN2 + math.log(1 + 1 / ratio))
    assert positions(ORPO(beta=1.0)).sum().item() == pytest.approx(1.039721 + 0.232066, abs=1e-5)


def test_orpo_is_finite_where_a_completion_is_certain() -> None:
    leaf = torch.zeros(3, dtype=torch.float32, requires_grad=True)
    inputs = {name: torch.tensor(values) for name, values in PAIR.items()}
    loss_function(ORPO()).per_position(ORPO(), leaf, inputs, torch.tensor([0, 0, 1])).sum().backward()
    assert leaf.grad is not None
    assert bool(torch.isfinite(leaf.grad).all())


def test_simpo_by_hand() -> None:
    """beta = 2, gamma = 2 ln 2: 2 (-1.5 + 3) ln 2 - 2 ln 2 = ln 2, so -log s(ln 2) = log 1.5.

    The derivative in m_w is -beta / 3 = -2/3; half of that for each of the two chosen tokens.
    """
    loss = SimPO(beta=2.0, gamma=2 * LN2)
    assert positions(loss).sum().item() == pytest.approx(math.log(1.5))
    assert gradient(loss) == pytest.approx([-1 / 3, -1 / 3, 2 / 3])


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_gradients_are_finite_differences(loss: PreferenceLoss) -> None:
    """The derivative in each log-probability, with the step 1e-6."""
    found, step = gradient(loss), 1e-6
    for place in range(3):
        sides = []
        for sign in (1, -1):
            moved = list(LOGPROBS)
            moved[place] += sign * step
            sides.append(positions(loss, moved).sum().item())
        assert found[place] == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-7)


def _log_s(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def _dpo(loss: Any, w: np.ndarray, l: np.ndarray, rw: np.ndarray, rl: np.ndarray) -> float:  # noqa: E741
    """Rafailov et al., equation 7; label smoothing as in their note on noisy labels."""
    logits = loss.beta * ((w.sum() - rw.sum()) - (l.sum() - rl.sum()))
    return -(1 - loss.label_smoothing) * _log_s(logits) - loss.label_smoothing * _log_s(-logits)


def _ipo(loss: Any, w: np.ndarray, l: np.ndarray, rw: np.ndarray, rl: np.ndarray) -> float:  # noqa: E741
    return float(((w - rw).mean() - (l - rl).mean() - 1 / (2 * loss.beta)) ** 2)


def _kto(loss: Any, w: np.ndarray, l: np.ndarray, rw: np.ndarray, rl: np.ndarray) -> float:  # noqa: E741
    value_w = loss.desirable_weight / (1 + math.exp(-loss.beta * (w.sum() - rw.sum() - 0.2)))
    value_l = loss.undesirable_weight / (1 + math.exp(-loss.beta * (0.2 - l.sum() + rl.sum())))
    return loss.desirable_weight - value_w + loss.undesirable_weight - value_l


def _orpo(loss: Any, w: np.ndarray, l: np.ndarray, rw: np.ndarray, rl: np.ndarray) -> float:  # noqa: E741
    p_w, p_l = math.exp(w.mean()), math.exp(l.mean())
    return float(-w.mean() - loss.beta * _log_s(math.log(p_w / (1 - p_w) / (p_l / (1 - p_l)))))


def _simpo(loss: Any, w: np.ndarray, l: np.ndarray, rw: np.ndarray, rl: np.ndarray) -> float:  # noqa: E741
    return -_log_s(loss.beta / w.size * w.sum() - loss.beta / l.size * l.sum() - loss.gamma)


PAPERS: Mapping[type, Callable[..., float]] = {DPO: _dpo, IPO: _ipo, KTO: _kto, ORPO: _orpo, SimPO: _simpo}


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_many_pairs_equal_the_papers_formula_on_the_same_logits(loss: PreferenceLoss) -> None:
    """From logits in float32, ours as the engine calls it; the formulas, one pair at a time, in float64: to 1e-6."""
    draw = np.random.default_rng(0)
    rows: dict[str, list[float]] = {name: [] for name in ("logp", "reference_logprobs", "pair", "side", "datum")}
    expected = 0.0
    for pair in range(20):
        parts = []
        for side in (1, -1):
            num = int(draw.integers(1, 12))
            logits, reference = (draw.normal(0, 1.5, (num, 30)) for _ in range(2))
            targets = draw.integers(0, 30, num)
            logp, ref = (
                (x - np.log(np.exp(x).sum(1, keepdims=True)))[range(num), targets] for x in (logits, reference)
            )
            parts += [logp, ref]
            rows["logp"] += logp.tolist()
            rows["reference_logprobs"] += ref.tolist()
            rows["pair"] += [100 + pair] * num
            rows["side"] += [side] * num
            rows["datum"] += [2 * pair + (side < 0)] * num
        w, rw, l, rl = parts  # noqa: E741
        expected += PAPERS[type(loss)](loss, w, l, rw, rl)
    order = draw.permutation(len(rows["logp"]))  # a stream may hold the positions in any order
    values = {name: torch.tensor(np.array(some)[order], dtype=torch.float32) for name, some in rows.items()}
    logprobs, datum_S = values.pop("logp"), values.pop("datum").long()
    values["reference_point"] = torch.full_like(logprobs, 0.2)
    found = loss_function(loss).per_position(loss, logprobs, values, datum_S).sum().item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_pair_that_lacks_a_side_is_named() -> None:
    with pytest.raises(ValueError, match="pair 7 lacks its chosen or its rejected side"):
        positions(DPO(), pair=[7.0] * 3, side=[1.0] * 3)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DPO(beta=0.0), "beta must be above 0"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing must lie in"),
        (lambda: KTO(desirable_weight=-1.0), "a weight is below 0"),
    ],
)
def test_a_value_out_of_range_is_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
