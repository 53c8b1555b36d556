"""The loss head beside log_softmax in float64, and the memory it takes."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from crucible_train.adapters.torch_local import loss_head
from crucible_train.adapters.torch_local.loss_head import MAX_CHUNK_BYTES, Head, logprobs, weighted_logprobs

NUM, VOCAB, WIDTH = 37, 23, 11
SHAPES = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "scale": {"scale": 0.3},
    "bias": {"bias": True},
    "all": {"softcap": 2.0, "scale": 0.3, "bias": True},
}


@dataclass
class Case:
    """Inputs of a head, with what float64 makes of them."""

    head: Head
    hidden: Tensor
    targets: Tensor
    weights: Tensor

    def reference(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-probabilities, and the gradients of their weighted sum, less."""
        hidden, weight = (x.detach().double().requires_grad_() for x in (self.hidden, self.head.weight))
        bias = None if self.head.bias is None else self.head.bias.detach().double().requires_grad_()
        logits = hidden @ weight.T
        if bias is not None:
            logits = logits + bias
        logits = logits * self.head.scale
        if self.head.softcap is not None:
            logits = self.head.softcap * torch.tanh(logits / self.head.softcap)
        found = torch.log_softmax(logits, 1)[torch.arange(len(self.targets)), self.targets]
        (-(found * self.weights.double()).sum()).backward()
        leaves = {"hidden": hidden, "weight": weight} | ({} if bias is None else {"bias": bias})
        return found.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    def gradients(self) -> dict[str, Tensor]:
        leaves = {"hidden": self.hidden, "weight": self.head.weight, "bias": self.head.bias}
        return {name: leaf.grad for name, leaf in leaves.items() if leaf is not None and leaf.grad is not None}


def case(*, bias: bool = False, is_trained: bool = True, num: int = NUM, **bends: float) -> Case:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(VOCAB, WIDTH), requires_grad=is_trained)
    b = nn.Parameter(torch.randn(VOCAB), requires_grad=is_trained) if bias else None
    hidden = torch.randn(num, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCAB, (num,))
    weights = torch.randn(num) * 3
    return Case(Head(weight, weight.data, b, **bends), hidden, targets, weights)


def known_weights(given: Case) -> Tensor:
    loss, found = weighted_logprobs(given.hidden, given.head, given.targets, given.weights)
    torch.testing.assert_close(loss, -(found * given.weights).sum())
    assert not found.requires_grad
    loss.backward()
    return found


def any_loss(given: Case) -> Tensor:
    found = logprobs(given.hidden, given.head, given.targets)
    (-(found * given.weights).sum()).backward()
    return found.detach()


PATHS: dict[str, Callable[[Case], Tensor]] = {"known weights": known_weights, "any loss": any_loss}


def chunks_of(monkeypatch: pytest.MonkeyPatch, rows: int, softcap: float | None) -> None:
    bytes_a_logit = 4 if softcap is None else 8
    monkeypatch.setattr(loss_head, "MAX_CHUNK_BYTES", rows * VOCAB * bytes_a_logit)


def assert_equal(given: Case, found: Tensor, names: set[str]) -> None:
    expected, gradients = given.reference()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert set(given.gradients()) == names
    for name in names:
        torch.testing.assert_close(given.gradients()[name].double(), gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, NUM, 1000])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", PATHS)
def test_it_equals_log_softmax_however_it_is_cut(
    path: str, shape: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = case(**SHAPES[shape])
    chunks_of(monkeypatch, rows, given.head.softcap)
    names = {"hidden", "weight"} | ({"bias"} if given.head.bias is not None else set())
    assert_equal(given, PATHS[path](given), names)


@pytest.mark.parametrize("path", PATHS)
def test_a_frozen_head_has_no_gradient(path: str) -> None:
    given = case(is_trained=False, **SHAPES["all"])
    assert_equal(given, PATHS[path](given), {"hidden"})


@pytest.mark.parametrize("path", PATHS)
def test_a_head_alone_is_trained_where_the_hidden_states_are_constants(path: str) -> None:
    given = case(bias=True)
    given.hidden = given.hidden.detach()
    assert_equal(given, PATHS[path](given), {"weight", "bias"})


@pytest.mark.parametrize("path", PATHS)
def test_gradients_add_up(path: str) -> None:
    given = case(bias=True)
    PATHS[path](given)
    once = {name: gradient.clone() for name, gradient in given.gradients().items()}
    PATHS[path](given)
    for name, gradient in given.gradients().items():
        torch.testing.assert_close(gradient, 2 * once[name])


@pytest.mark.parametrize("path", PATHS)
def test_a_weight_that_is_also_the_embedding_gets_both_gradients(path: str) -> None:
    given = case()
    ids = torch.randint(0, VOCAB, (NUM,))
    given.hidden = given.head.weight[ids]
    PATHS[path](given)
    leaf = given.head.weight.detach().double().requires_grad_()
    found = torch.log_softmax(leaf[ids] @ leaf.T, 1)[torch.arange(NUM), given.targets]
    (-(found * given.weights.double()).sum()).backward()
    torch.testing.assert_close(given.head.weight.grad.double(), leaf.grad, rtol=1e-4, atol=1e-5)


def test_any_function_of_the_log_probabilities_flows_back() -> None:
    given = case(**SHAPES["all"])
    found = logprobs(given.hidden, given.head, given.targets)
    (found.exp() * found).pow(2).sum().backward()
    hidden, weight, bias = (
        x.detach().double().requires_grad_() for x in (given.hidden, given.head.weight, given.head.bias)
    )
    bent = 2.0 * torch.tanh((hidden @ weight.T + bias) * 0.3 / 2.0)
    expected = torch.log_softmax(bent, 1)[torch.arange(NUM), given.targets]
    (expected.exp() * expected).pow(2).sum().backward()
    for name, leaf in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        torch.testing.assert_close(given.gradients()[name].double(), leaf.grad, rtol=1e-4, atol=1e-6)


def test_logits_of_any_size_are_finite() -> None:
    given = case()
    given.hidden = (given.hidden.detach() * 1e4).requires_grad_()
    assert known_weights(given).isfinite().all()
    assert all(gradient.isfinite().all() for gradient in given.gradients().values())


def test_a_gradient_formed_for_this_loss_is_not_used_for_another() -> None:
    given = case()
    loss, _ = weighted_logprobs(given.hidden, given.head, given.targets, given.weights)
    with pytest.raises(RuntimeError, match="backward pass that starts from it"):
        (2 * loss).backward()


def test_nothing_scored_is_nothing() -> None:
    given = case(num=0)
    assert known_weights(given).shape == (0,)
    assert given.gradients()["hidden"].shape == (0, WIDTH)


@pytest.mark.parametrize("path", PATHS)
def test_products_in_bfloat16_are_near(path: str) -> None:
    given = case()
    given.head = Head(given.head.weight, given.head.weight.data.bfloat16())
    expected, gradients = given.reference()
    torch.testing.assert_close(PATHS[path](given).double(), expected, rtol=0.02, atol=0.1)
    for name, gradient in given.gradients().items():
        assert gradient.dtype == torch.float32
        assert (gradient.double() - gradients[name]).norm() / gradients[name].norm() < 0.02, name


def peak_bytes(act: Callable[[], object]) -> int:
    """The most memory that tensors made within have held at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        act()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_the_measure_of_memory_sees_what_comes_and_goes() -> None:
    def act() -> None:
        for _ in range(3):
            torch.ones(1 << 20)
        torch.ones(1 << 18) + torch.ones(1 << 18)

    assert 4 << 20 <= peak_bytes(act) < 5 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("softcap", [None, 30.0], ids=["no softcap", "softcap"])
@pytest.mark.parametrize("path", PATHS)
def test_64_mib_are_enough_for_any_vocabulary(path: str, softcap: float | None, dtype: torch.dtype) -> None:
    vocab, num, width = 256_000, 160, 4
    weight = nn.Parameter(torch.randn(vocab, width))
    weight.grad = torch.zeros_like(weight)
    hidden = torch.randn(num, width, requires_grad=True)
    head = Head(weight, weight.data.to(dtype), softcap=softcap)
    given = Case(head, hidden, torch.arange(num), torch.ones(num))
    own = hidden.nbytes + 4 * num * 16  # the gradient of the hidden states, and a few numbers a position
    found = peak_bytes(lambda: PATHS[path](given))
    assert found <= MAX_CHUNK_BYTES + own < 65 << 20
    assert found > MAX_CHUNK_BYTES / 2
