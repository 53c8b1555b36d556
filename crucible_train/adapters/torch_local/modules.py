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

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from crucible_train.adapters.torch_local.loss_head import gradient_of

_PROBE_ROWS = 4
_TOLERANCE = 1e-5


class Precision:
    """In which precision matrix products are computed, and the weights in that precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        """float32 or bfloat16."""
        self.dtype = dtype
        self._shadows: list[tuple[Tensor, Tensor]] = []
        self._followers: list[Callable[[], None]] = []

    @property
    def is_mixed(self) -> bool:
        """Whether products are computed in less than float32."""
        return self.dtype != torch.float32

    def compute(self, parameter: Tensor) -> Tensor:
        """The weight as the matrix products read it.

        A frozen weight is moved to the precision for good; a trained one keeps its float32 values and gets a shadow.
        """
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(self.dtype)
            return parameter.data
        if not self.is_mixed:
            return parameter.data
        for known, shadow in self._shadows:
            if known is parameter:
                return shadow
        shadow = parameter.data.to(self.dtype)
        self._shadows.append((parameter, shadow))
        return shadow

    def when_refreshed(self, follow: Callable[[], None]) -> None:
        """Have ``follow`` called whenever trained weights have changed."""
        self._followers.append(follow)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy trained weights into their shadows; to be called after they change."""
        for parameter, shadow in self._shadows:
            shadow.copy_(parameter)
        for follow in self._followers:
            follow()


def install(model: nn.Module, precision: Precision, *, remakes: bool) -> dict[str, int]:
    """Put the twins in place of what they equal; how many of each kind were.

    ``remakes`` lets outputs be made again from what is kept. It does not go together with recomputing whole layers:
    what an output is made from would outlive the layer's pass.
    """
    counts = {"linear": 0, "lora": 0, "norm": 0, "mlp": 0, "embedding": 0}
    for module in model.modules():
        if isinstance(module, LoraLinear):
            counts["lora"] += _install_lora(module, precision)
        elif type(module) is nn.Embedding:
            counts["embedding"] += _install_embedding(module, precision)
        elif _is_rms_norm(module):
            counts["norm"] += _install_norm(module, precision, remakes=remakes)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and "lora_" not in name and not hasattr(module, "crucible_twin"):
            counts["linear"] += _install_linear(module, precision)
    for module in model.modules():
        if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            counts["mlp"] += _install_mlp(module, remakes=remakes)
    return counts


# Matrix products -----------------------------------------------------------------------------------------------------


class _Linear(torch.autograd.Function):
    """``x W^T + b``, keeping ``x`` in the product's precision; the gradient of ``W`` goes into ``.grad`` itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, compute: Tensor, bias: Tensor | None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(compute.dtype)
        out = torch.mm(flat, compute.t())
        if bias is not None:
            out.add_(bias)
        ctx.keep = _Kept(ctx, x, flat) if weight.requires_grad else None
        ctx.weight, ctx.bias, ctx.compute, ctx.like = weight, bias, compute, (x.shape, x.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shape, dtype = ctx.like
        grad = grad.reshape(-1, grad.shape[-1]).to(ctx.compute.dtype)
        if ctx.keep is not None:
            _add_product(gradient_of(ctx.weight), grad, ctx.keep.take(ctx.saved_tensors))
        if ctx.bias is not None and ctx.bias.requires_grad:
            gradient_of(ctx.bias).add_(grad.sum(0, dtype=torch.float32))
        back = torch.mm(grad, ctx.compute).view(shape).to(dtype) if ctx.needs_input_grad[0] else None
        return back, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left^T right``; ``total`` may be of higher precision than the two."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(torch.mm(left.t(), right))


class _Kept:
    """The input of a product, kept for the backward pass, or the way to make it again."""

    def __init__(self, ctx: Any, x: Tensor, flat: Tensor, *others: Tensor) -> None:
        self._remake: Callable[[], Tensor] | None = getattr(x, "remake", None)
        self._dtype = flat.dtype
        ctx.save_for_backward(*(others if self._remake is not None else (*others, flat)))

    def take(self, saved: Sequence[Tensor]) -> Tensor:
        """The input as rows, in the precision of the product. What it was made from is let go of."""
        if self._remake is None:
            return saved[-1]
        made, self._remake = self._remake(), None
        return made.reshape(-1, made.shape[-1]).to(self._dtype)


def _install_linear(module: nn.Linear, precision: Precision) -> int:
    weight, bias = module.weight, module.bias
    if not weight.requires_grad and not precision.is_mixed:
        return 0
    compute = precision.compute(weight)
    module.forward = lambda x: _Linear.apply(x, weight, compute, bias)  # type: ignore[method-assign, assignment]
    module.crucible_twin = True  # type: ignore[assignment]
    return 1


def _lora_product(
    flat: Tensor, compute: Tensor, bias: Tensor | None, a: Tensor, scaled_b: Tensor
) -> tuple[Tensor, Tensor]:
    """The output rows and the rows ``x A^T``."""
    inner = torch.mm(flat, a.t())
    out = torch.mm(flat, compute.t()).addmm_(inner, scaled_b.t())
    if bias is not None:
        out.add_(bias)
    return out, inner


class _Factors:
    """``A`` and ``s B`` in the precision of products, made once for all passes without gradient until they change."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, precision: Precision) -> None:
        self._a, self._b, self._scale = a, b, scale
        self._dtype = precision.dtype
        self._made: tuple[Tensor, Tensor] | None = None
        precision.when_refreshed(self._forget)

    def get(self) -> tuple[Tensor, Tensor]:
        if self._made is None:
            self._made = (self._a.detach().to(self._dtype), (self._b.detach() * self._scale).to(self._dtype))
        return self._made

    def _forget(self) -> None:
        self._made = None


class _Lora(torch.autograd.Function):
    """``x W^T + s (x A^T) B^T`` with ``W`` frozen: the update is added inside the product, no pass over the output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, compute: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(compute.dtype)
        a_compute, b_compute = a.to(compute.dtype), (b * scale).to(compute.dtype)
        out, inner = _lora_product(flat, compute, bias, a_compute, b_compute)
        ctx.keep = _Kept(ctx, x, flat, compute, inner, a_compute, b_compute)
        ctx.scale, ctx.like = scale, (x.shape, x.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        compute, inner, a, b = saved[:4]
        shape, dtype = ctx.like
        grad = grad.reshape(-1, grad.shape[-1]).to(compute.dtype)
        grad_inner = torch.mm(grad, b)
        grad_a = torch.mm(grad_inner.t(), ctx.keep.take(saved)).float()
        grad_b = torch.mm(grad.t(), inner).float().mul_(ctx.scale)
        back = None
        if ctx.needs_input_grad[0]:
            back = torch.mm(grad, compute).addmm_(grad_inner, a).view(shape).to(dtype)
        return back, None, None, grad_a, grad_b, None


def _install_lora(module: LoraLinear, precision: Precision) -> int:
    base = module.base_layer
    if type(base) is not nn.Linear or base.weight.requires_grad:
        return 0
    compute = precision.compute(base.weight)
    base.crucible_twin = True  # type: ignore[assignment]
    (adapter,) = module.active_adapters
    if module.use_dora.get(adapter, False) or not isinstance(module.lora_dropout[adapter], nn.Identity):
        base.forward = lambda x: _Linear.apply(x, base.weight, compute, base.bias)  # type: ignore[method-assign, assignment]
        return 0
    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    scale = float(module.scaling[adapter])
    factors = _Factors(a, b, scale, precision)

    def forward(x: Tensor) -> Tensor:
        if module.disable_adapters:
            return _Linear.apply(x, base.weight, compute, base.bias)
        if not torch.is_grad_enabled():
            flat = x.reshape(-1, x.shape[-1]).to(compute.dtype)
            return _lora_product(flat, compute, base.bias, *factors.get())[0].view(*x.shape[:-1], -1)
        return _Lora.apply(x, compute, base.bias, a, b, scale)

    module.forward = forward
    return 1


class _Embedding(torch.autograd.Function):
    """Rows of the table as float32; the gradient is added to the rows of ``.grad``, with no table of its own."""

    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding = weight, padding
        return F.embedding(ids, weight.detach()).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        flat, rows = ids.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if ctx.padding is not None:
            rows = rows.masked_fill((flat == ctx.padding)[:, None], 0.0)
        gradient_of(ctx.weight).index_add_(0, flat, rows)
        return None, None, None


def _install_embedding(module: nn.Embedding, precision: Precision) -> int:
    weight = module.weight
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return 0
    precision.compute(weight)
    if weight.requires_grad:
        module.forward = lambda ids: _Embedding.apply(weight, ids, module.padding_idx)  # type: ignore[method-assign, assignment]
    else:
        module.forward = lambda ids: F.embedding(ids, weight).float()  # type: ignore[method-assign, assignment]
    return 1


# Normalisation and MLP -----------------------------------------------------------------------------------------------


class _RmsNorm(torch.autograd.Function):
    """``w x / rms(x)`` (Zhang and Sennrich, arXiv 1910.07467), keeping only its input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        inverse = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
        inverse.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        ctx.mark_non_differentiable(inverse)
        return _scaled(x, inverse, weight, dtype), inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        flat, width = x.float(), x.shape[-1]
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * flat * inverse).reshape(-1, width).sum(0)
        grad = grad * weight
        slope = (grad * flat).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-width)
        return grad.mul_(inverse).addcmul_(flat, slope).to(x.dtype), grad_weight, None, None


def _scaled(x: Tensor, inverse: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return (x.float() * inverse).mul_(weight).to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, *, remakes: bool) -> Tensor:
    """Normalise each row; with ``remakes`` the result can be made again from the input."""
    if not torch.is_grad_enabled():
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(dtype)
    out, inverse = _RmsNorm.apply(x, weight, eps, dtype)
    if remakes:
        x, scales = x.detach(), weight.detach()
        out.remake = lambda: _scaled(x, inverse, scales, dtype)
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
    weight.data = weight.data.float()

    probe = torch.randn(_PROBE_ROWS, weight.shape[0], device=weight.device, generator=_generator(weight.device))
    with torch.no_grad():
        if not _equal(module.forward(probe), rms_norm(probe, weight, eps, torch.float32, remakes=False)):
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
    if not all(isinstance(part, nn.Module) for part in (gate, up, down)):
        return 0

    def twin(x: Tensor) -> Any:
        return down(gated_silu(gate(x), up(x), remakes=remakes))

    width = _input_width(gate)
    if width is None:
        return 0
    with torch.no_grad():
        device = next(module.parameters()).device
        x = torch.randn(_PROBE_ROWS, width, device=device, generator=_generator(device))
        try:
            own = module.forward(x)
        except TypeError:  # a block with other arguments (an expert layer, say) keeps its own forward
            return 0
        if not isinstance(own, Tensor) or not _equal(own.float(), twin(x).float()):
            return 0
    module.forward = twin
    return 1


def _input_width(linear: Any) -> int | None:
    return getattr(linear, "in_features", None)


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(0)


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE)


def trainable(model: nn.Module) -> Sequence[tuple[str, nn.Parameter]]:
    """The named parameters that are trained, in the model's order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
