"""Leaner twins of the modules a transformer spends its time in.

Each replaces a module's forward by one that computes the same and keeps less: the matrix products in the chosen
precision, a normalisation that keeps its input only, a gated MLP that keeps gate and up only. Weights stay where they
are, under their own names, so that checkpoints and adapters are those of the plain model. A twin is put in place only
where its output on random input equals the module's own; whatever is not recognised runs as transformers wrote it.

An output that can be made again from what is kept anyway carries ``remake``, and products that would have to keep it
for their weight's gradient keep that instead.

The residual stream and all statistics are float32. In bfloat16 the matrix products read and write bfloat16; frozen
weights are kept in it, trained ones are float32 masters with a bfloat16 shadow that ``Precision.refresh`` renews.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from crucible_train.adapters.torch_local.precision import Precision
from crucible_train.adapters.torch_local.products import install_embedding, install_linear, install_lora

_PROBE_ROWS = 4
_TOLERANCE = 1e-5


def install(model: nn.Module, precision: Precision, *, remakes: bool) -> dict[str, int]:
    """Put the twins in place of what they equal; how many of each kind were.

    ``remakes`` lets outputs be made again from what is kept. It does not go together with recomputing whole layers:
    what an output is made from would outlive the layer's pass.
    """
    counts = {"linear": 0, "lora": 0, "norm": 0, "mlp": 0, "embedding": 0}
    for module in model.modules():
        if isinstance(module, LoraLinear):
            counts["lora"] += install_lora(module, precision)
        elif type(module) is nn.Embedding:
            counts["embedding"] += install_embedding(module, precision)
        elif _is_rms_norm(module):
            counts["norm"] += _install_norm(module, precision, remakes=remakes)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and "lora_" not in name and not hasattr(module, "crucible_twin"):
            counts["linear"] += install_linear(module, precision)
    for module in model.modules():
        if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            counts["mlp"] += _install_mlp(module, remakes=remakes)
    return counts


class _RmsNorm(torch.autograd.Function):
    """``w x / rms(x)`` (Zhang and Sennrich, arXiv 1910.07467), keeping only its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _normalised(x, weight, eps, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat, width = x.float(), x.shape[-1]
        inverse = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
        inverse.square_().div_(width).add_(ctx.eps).rsqrt_()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * flat * inverse).reshape(-1, width).sum(0)
        grad = grad * weight
        slope = (grad * flat).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-width)
        return grad.mul_(inverse).addcmul_(flat, slope).to(x.dtype), grad_weight, None, None


def _normalised(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, *, remakes: bool) -> Tensor:
    """Normalise each row, to the same bits with a gradient and without: a reference must not differ by rounding.

    With ``remakes`` the result can be made again from the input.
    """
    if not torch.is_grad_enabled():
        return _normalised(x, weight, eps, dtype)
    out = _RmsNorm.apply(x, weight, eps, dtype)
    if remakes:
        x, scales = x.detach(), weight.detach()
        out.remake = lambda: _normalised(x, scales, eps, dtype)
    return out


def _is_rms_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "rmsnorm" in type(module).__name__.lower() and isinstance(weight, nn.Parameter) and weight.ndim == 1


def _install_norm(module: nn.Module, precision: Precision, *, remakes: bool) -> int:
    eps = next(
        (getattr(module, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(module, name)), None
    )
    weight = module.weight
    if not isinstance(eps, float) or not isinstance(weight, nn.Parameter):
        return 0
    if not _takes_one_input(module) or len(list(module.parameters())) != 1:
        return 0
    own = weight.data.float()
    generator = _generator(weight.device)
    probe = torch.randn(_PROBE_ROWS, weight.shape[0], device=weight.device, generator=generator)
    with torch.no_grad():
        # at other weights than its own, which training changes: at ones, many formulas are alike
        weight.data = torch.rand(weight.shape, device=weight.device, generator=generator) + 0.5
        expected = module.forward(probe)
        found = _both_ways(lambda x: rms_norm(x, weight, eps, torch.float32, remakes=False), probe)
        weight.data = own
    if not all(_equal(expected, one) for one in found):
        return 0
    module.forward = lambda x: rms_norm(x, weight, eps, precision.dtype, remakes=remakes)
    return 1


class _GatedSilu(torch.autograd.Function):
    """``silu(gate) * up``, keeping the two and nothing else."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        grad_up = grad * silu
        # d silu / d gate = sigmoid (1 + gate - silu)
        return silu.neg_().add_(gate).add_(1.0).mul_(sigmoid).mul_(up).mul_(grad), grad_up


def gated_silu(gate: Tensor, up: Tensor, *, remakes: bool) -> Tensor:
    """``silu(gate) * up``; with ``remakes`` the result can be made again from the two."""
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    out = _GatedSilu.apply(gate, up)
    if remakes:
        gate, up = gate.detach(), up.detach()
        out.remake = lambda: F.silu(gate).mul_(up)
    return out


def _install_mlp(module: nn.Module, *, remakes: bool) -> int:
    activation: Callable[[Tensor], Tensor] = module.act_fn  # type: ignore[assignment]
    probe = torch.linspace(-8, 8, 33)
    if not callable(activation) or not _equal(activation(probe), F.silu(probe)):
        return 0
    gate: Any = module.gate_proj
    up: Any = module.up_proj
    down: Any = module.down_proj
    if not all(isinstance(part, nn.Module) for part in (gate, up, down)) or not _takes_one_input(module):
        return 0

    def twin(x: Tensor) -> Any:
        return down(gated_silu(gate(x), up(x), remakes=remakes))

    width = _input_width(gate)
    if width is None:
        return 0
    with torch.no_grad():
        device = next(module.parameters()).device
        x = torch.randn(_PROBE_ROWS, width, device=device, generator=_generator(device))
        own = module.forward(x)
        if not isinstance(own, Tensor) or not all(_equal(own.float(), one.float()) for one in _both_ways(twin, x)):
            return 0
    module.forward = twin
    return 1


def _both_ways(twin: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """What a twin gives in training and in sampling: it computes the two in different ways."""
    found = []
    for is_training in (True, False):
        with torch.set_grad_enabled(is_training):
            found.append(twin(x).detach())
    return found


def _takes_one_input(module: nn.Module) -> bool:
    """Whether nothing but the hidden states is given to it: an expert layer or a gated norm takes more."""
    return len(inspect.signature(module.forward).parameters) == 1


def _input_width(linear: Any) -> int | None:
    return getattr(linear, "in_features", None)


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(0)


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE)


def trainable(model: nn.Module) -> Sequence[tuple[str, nn.Parameter]]:
    """The named parameters that are trained, in the model's order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
