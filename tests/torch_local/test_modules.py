"""Each twin equals the module it replaces, gradients too; what it does not equal keeps its own forward."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from crucible_train.adapters.torch_local import modules
from crucible_train.adapters.torch_local.backend import LocalBackend
from crucible_train.adapters.torch_local.modules import Precision, install

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


class GatedMlp(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 12), nn.Linear(8, 12, bias=False)
        self.down_proj = nn.Linear(12, 8)
        self.act_fn = act or nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class DoublingMlp(GatedMlp):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class RoutedMlp(GatedMlp):
    def forward(self, x: Tensor, routes: Tensor) -> Tensor:
        return super().forward(x)[routes]


class BiasedRMSNorm(LlamaRMSNorm):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class SquaredRMSNorm(LlamaRMSNorm):
    """Multiplies by the square of its weight: the same as by its weight, while that is one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(x) * (1.0 if gate is None else F.silu(gate))


class OptionallyRoutedMlp(GatedMlp):
    def forward(self, x: Tensor, routes: Tensor | None = None) -> Tensor:
        return super().forward(x) if routes is None else super().forward(x)[routes]


class Block(nn.Module):
    """What a layer is made of, after an embedding of 17 words."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(17, 8, padding_idx=3)
        self.norm, self.mlp, self.out = LlamaRMSNorm(8), GatedMlp(), nn.Linear(8, 5)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 2.0)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.out(x + self.mlp(self.norm(x)))


def with_adapter(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=6.0, target_modules=["gate_proj", "up_proj", "down_proj", "out"])
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted


def run(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.tensor([[1, 2, 3, 16, 1], [9, 3, 9, 0, 4]])
    torch.manual_seed(2)
    out = model(ids)
    (out.float() * torch.randn(out.shape)).sum().backward()
    return out.detach().float(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def make(adapted: bool) -> nn.Module:
    return with_adapter(Block()) if adapted else Block()


@pytest.mark.parametrize("remakes", [True, False], ids=["remaking", "keeping"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_twins_compute_what_the_modules_do(adapted: bool, remakes: bool) -> None:
    expected, gradients = run(make(adapted))
    model = make(adapted)
    counts = install(model, Precision(FLOAT32), remakes=remakes)
    kind = {"lora": 4, "linear": 0} if adapted else {"lora": 0, "linear": 4}
    assert counts == {"norm": 1, "mlp": 1, "embedding": 1, **kind}
    found, own = run(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert set(own) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-5, atol=1e-5, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([[1, 2]])), make(adapted)(torch.tensor([[1, 2]])))


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_twins_in_bfloat16_are_near_and_their_gradients_are_float32(adapted: bool) -> None:
    expected, gradients = run(make(adapted))
    model = make(adapted)
    install(model, Precision(BFLOAT16), remakes=True)
    found, own = run(model)
    assert (found - expected).norm() / expected.norm() < 0.02
    assert set(own) == set(gradients)
    for name, gradient in gradients.items():
        assert own[name].dtype == FLOAT32
        assert (own[name] - gradient).norm() / gradient.norm() < 0.04, name
    for parameter in model.parameters():
        if parameter.ndim > 1:
            assert parameter.dtype == (FLOAT32 if parameter.requires_grad else BFLOAT16)


def test_gradients_add_up_over_passes() -> None:
    model = Block()
    install(model, Precision(FLOAT32), remakes=True)
    once = {name: gradient.clone() for name, gradient in run(model)[1].items()}
    for name, gradient in run(model)[1].items():
        torch.testing.assert_close(gradient, 2 * once[name], msg=name)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_passes_without_gradient_follow_the_weights_once_they_are_refreshed(adapted: bool, dtype: torch.dtype) -> None:
    model, precision = make(adapted), Precision(dtype)
    install(model, precision, remakes=True)
    ids = torch.tensor([[1, 2, 5]])
    for _ in range(2):
        with torch.no_grad():
            before = model(ids)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
            precision.refresh()
            after = model(ids)
        torch.testing.assert_close(after.float(), model(ids).detach().float(), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(before.float(), after.float(), atol=0.01)


def test_an_adapter_that_is_switched_off_is_off() -> None:
    model = make(adapted=True)
    install(model, Precision(FLOAT32), remakes=True)
    ids = torch.tensor([[1, 2, 5]])
    with model.disable_adapter():
        torch.testing.assert_close(model(ids), Block()(ids))


def installed(module: nn.Module) -> dict[str, int]:
    holder = nn.ModuleList([module])
    own = module.forward
    counts = install(holder, Precision(FLOAT32), remakes=True)
    assert (module.forward == own) == (not counts["norm"] and not counts["mlp"])
    return {kind: counts[kind] for kind in ("norm", "mlp")}


@pytest.mark.parametrize(
    "module",
    [
        GemmaRMSNorm(8),
        BiasedRMSNorm(8),
        SquaredRMSNorm(8),
        GatedRMSNorm(8),
        GatedMlp(GELUActivation()),
        GatedMlp(nn.ReLU()),
        DoublingMlp(),
        RoutedMlp(),
        OptionallyRoutedMlp(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_a_twin_does_not_equal_keeps_its_own_forward(module: nn.Module) -> None:
    assert installed(module) == {"norm": 0, "mlp": 0}


def test_a_norm_keeps_its_weights_through_the_trial() -> None:
    norm = LlamaRMSNorm(8)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(8.0))
    assert installed(norm) == {"norm": 1, "mlp": 0}
    assert norm.weight.tolist() == list(range(8))


@pytest.mark.parametrize("change", ["max_norm", "sparse", "scale_grad_by_freq"])
def test_an_embedding_with_a_rule_of_its_own_is_left_alone(change: str) -> None:
    embedding = nn.Embedding(5, 4, **{change: 1.0 if change == "max_norm" else True})
    assert install(nn.ModuleList([embedding]), Precision(FLOAT32), remakes=True)["embedding"] == 0


def test_a_linear_subclass_is_left_alone() -> None:
    class Cosine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.normalize(x, dim=-1), self.weight)

    model = nn.ModuleList([Cosine(4, 4), nn.Linear(4, 4)])
    assert install(model, Precision(FLOAT32), remakes=True)["linear"] == 1


@pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])
def test_bfloat16_loses_a_hundredth_at_most_and_keeps_float32_masters(
    rank: int | None, engine: Callable[..., LocalBackend], datum: Callable[..., Any]
) -> None:
    from crucible_train.types import AdamParams, CrossEntropy

    draw = torch.Generator().manual_seed(0)
    datums = [datum(torch.randint(1, 61, (n,), generator=draw).numpy()) for n in (20, 31, 9)]

    async def losses(backend: LocalBackend) -> list[float]:
        found = []
        for _ in range(4):
            found.append((await backend.forward_backward(datums, CrossEntropy())).loss)
            await backend.optim_step(AdamParams(learning_rate=3e-3))
        return found

    exact, rounded = engine(rank=rank), engine(rank=rank, precision="bfloat16")
    for one, other in zip(asyncio.run(losses(exact)), asyncio.run(losses(rounded)), strict=True):
        assert other == pytest.approx(one, rel=0.01)
        assert other != one
    assert {parameter.dtype for _, parameter in rounded._parameters} == {FLOAT32}
    moments = [state["exp_avg"] for state in rounded._optimizer.state.values()]
    assert {moment.dtype for moment in moments} == {FLOAT32}


@pytest.mark.parametrize(
    ("kind", "module", "twin"),
    [("norm", LlamaRMSNorm(8), modules._RmsNorm), ("mlp", GatedMlp(), modules._GatedSilu)],
    ids=["norm", "mlp"],
)
def test_a_twin_that_is_wrong_in_training_only_is_not_put_in_place(
    kind: str, module: nn.Module, twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling computes the same twin another way, so that alone proves nothing."""
    right = twin.apply

    def wrong(*given: Any) -> Any:
        found = right(*given)
        return (found[0] * 1.5, *found[1:]) if isinstance(found, tuple) else found * 1.5

    monkeypatch.setattr(twin, "apply", wrong)
    assert install(nn.Sequential(module), Precision(FLOAT32), remakes=False)[kind] == 0
