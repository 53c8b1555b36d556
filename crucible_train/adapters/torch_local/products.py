"""Matrix products, with and without an adapter, and the embedding: they keep less, and put gradients where they belong.

An input that carries ``remake`` is not kept for the backward pass: it is made again there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from crucible_train.adapters.torch_local.loss_head import gradient_of
from crucible_train.adapters.torch_local.precision import Precision


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


def install_linear(module: nn.Linear, precision: Precision) -> int:
    """Put the twin of a linear layer in place; how many were."""
    weight, bias = module.weight, module.bias
    if not weight.requires_grad and not precision.is_mixed:
        return 0
    compute = precision.compute(weight)

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _Linear.apply(x, weight, compute, bias)
        out = torch.mm(x.reshape(-1, x.shape[-1]).to(compute.dtype), compute.t())
        return (out if bias is None else out.add_(bias)).view(*x.shape[:-1], -1)

    module.forward = forward  # type: ignore[method-assign, assignment]
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


def install_lora(module: LoraLinear, precision: Precision) -> int:
    """Put the twin of a linear layer with an adapter in place; how many were."""
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


def install_embedding(module: nn.Embedding, precision: Precision) -> int:
    """Put the twin of an embedding in place; how many were."""
    weight = module.weight
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return 0
    precision.compute(weight)
    if weight.requires_grad:
        module.forward = lambda ids: _Embedding.apply(weight, ids, module.padding_idx)  # type: ignore[method-assign, assignment]
    else:
        module.forward = lambda ids: F.embedding(ids, weight).float()  # type: ignore[method-assign, assignment]
    return 1
