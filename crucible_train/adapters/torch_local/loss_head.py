"""The one loss head: log-probabilities of chosen tokens at chosen positions, never a full table of logits.

    logp_s = z[s, target_s] - log sum_v exp z[s, v],    z = hidden_S W^T

Logits exist for a chunk of positions at a time, at most ``MAX_CHUNK_BYTES`` of them whatever the vocabulary, in buffers
that are used again. Where what a position adds to the loss depends on its own log-probability alone, its gradient

    dz[s, v] = w_s (softmax(z_s)[v] - [v = target_s]),    w_s = -dloss/dlogp_s

is formed in the same chunk, so that a frozen head costs two matrix products and a trained one three; a trained head's
gradient goes straight into ``weight.grad``, with no table of its own. Where the loss is any other function of the
log-probabilities, a second pass computes the chunk again once dloss/dlogp is known.

A position may have K targets with a weight each: one normalisation and one row of gradient serve all of them.

Axes: S scored positions, K targets of a position, V vocabulary, X hidden width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_CHUNK_BYTES = 48 << 20
Weigh = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""From the log-probabilities of some rows, and which rows they are: their loss, and ``-dloss/dlogp`` of each."""
Form = Callable[["Chunk"], tuple[Tensor, Tensor]]
"""From a chunk of logits: the loss of its rows and what is to be told of each; it leaves dloss/dlogits in the chunk."""


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer: its weight (V, X), and how the model bends its logits.

    ``scale`` multiplies them, then ``softcap`` squashes them by tanh. ``compute`` is the weight in the precision of the
    matrix products; it is ``weight`` itself unless master weights are kept in another precision.
    """

    weight: Tensor
    compute: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def weighted_logprobs(hidden_SX: Tensor, head: Head, targets_S: Tensor, weights_S: Tensor) -> tuple[Tensor, Tensor]:
    """``-sum_s w_s logp_s`` and the log-probabilities (no gradient), both float32: ``weighed_logprobs`` of it."""

    def weigh(logprobs: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        weights = weights_S[rows]
        return -(logprobs * weights).sum(), weights

    return weighed_logprobs(hidden_SX, head, targets_S, weigh)


def weighed_logprobs(hidden_SX: Tensor, head: Head, targets_S: Tensor, weigh: Weigh) -> tuple[Tensor, Tensor]:
    """The loss that ``weigh`` gives and the log-probabilities (no gradient), both float32.

    The gradient is formed here, for a backward pass that starts from this very loss: a trained head's is added to
    ``head.weight.grad`` at once.
    """

    def form(chunk: Chunk) -> tuple[Tensor, Tensor]:
        found = chunk.normalise(targets_S)
        loss, weights = weigh(found, chunk.rows)
        chunk.form(targets_S, weights)
        return loss, found

    return formed(hidden_SX, head, targets_S.shape, form)


def formed(
    hidden_SX: Tensor, head: Head, shape: Sequence[int], form: Form, num_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """The loss that ``form`` gives and what it tells, of this shape; for a backward pass that starts from this loss.

    ``num_rows`` is how many rows stand in a chunk; None: as many as memory allows.
    """
    anchor = hidden_SX if hidden_SX.requires_grad else head.weight
    return _Formed.apply(hidden_SX, anchor, head, shape, form, num_rows)


def logprobs(hidden_SX: Tensor, head: Head, targets_S: Tensor) -> Tensor:
    """The log-probabilities, float32, through which any loss may flow back."""
    if not torch.is_grad_enabled():
        found = [chunk.normalise(targets_S) for chunk in chunks(hidden_SX, head)]
        return torch.cat(found) if found else torch.zeros(targets_S.shape, device=hidden_SX.device)
    anchor = hidden_SX if hidden_SX.requires_grad else head.weight
    return _Logprobs.apply(hidden_SX, anchor, head, targets_S)


class _Formed(torch.autograd.Function):
    """The second argument only ties the result to the graph where the hidden states have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, _anchor: Tensor, head: Head, shape: Sequence[int], form: Form, num_rows: int | None
    ) -> tuple[Tensor, Tensor]:
        grads = _Gradients(hidden, head, needs_hidden=ctx.needs_input_grad[0])
        out = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for chunk in chunks(hidden, head, num_rows):
            loss, out[chunk.rows] = form(chunk)
            total += loss
            grads.add(chunk)
        ctx.hidden_grad = grads.hidden
        ctx.mark_non_differentiable(out)
        return total, out

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if float(grad) != 1.0:
            raise RuntimeError("the gradient of a loss head was formed for a backward pass that starts from it")
        hidden_grad, ctx.hidden_grad = ctx.hidden_grad, None
        return hidden_grad, None, None, None, None, None


class _Logprobs(torch.autograd.Function):
    """The second argument only ties the result to the graph where the hidden states have no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, _anchor: Tensor, head: Head, targets: Tensor) -> Tensor:
        out = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        for chunk in chunks(hidden, head):
            out[chunk.rows] = chunk.normalise(targets)
        ctx.save_for_backward(hidden, targets)
        ctx.head = head
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets = ctx.saved_tensors
        grads = _Gradients(hidden, ctx.head, needs_hidden=ctx.needs_input_grad[0])
        for chunk in chunks(hidden, ctx.head):
            chunk.normalise(targets)
            chunk.form(targets, -grad[chunk.rows])
            grads.add(chunk)
        return grads.hidden, None, None, None


@dataclass(slots=True)
class Chunk:
    """The float32 logits of some rows, in a buffer that the next chunk uses again.

    After ``normalise`` the buffer holds ``exp(z - max)`` and ``total`` its sum; after ``form`` it holds dloss/dlogits.
    ``slope`` is the derivative of the bent logits where the model squashes them.
    """

    rows: slice
    logits: Tensor
    slope: Tensor | None
    total: Tensor | None = None

    def normalise(self, targets_S: Tensor) -> Tensor:
        """The log-probabilities of these rows' targets, in their shape."""
        targets = targets_S[self.rows]
        target = self.logits.gather(1, targets.reshape(len(targets), -1))
        highest = self.logits.amax(dim=1, keepdim=True)
        self.total = self.logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
        return (target - highest - self.total.log()).reshape(targets.shape)

    def form(self, targets_S: Tensor, weights: Tensor) -> None:
        """Turn normalised logits into the gradient of ``-sum_s w_s logp_s``; ``weights`` are these rows'."""
        assert self.total is not None
        targets = targets_S[self.rows]
        targets, weights = (x.reshape(len(targets), -1) for x in (targets, weights))
        self.logits.mul_(weights.sum(1, keepdim=True) / self.total)
        self.logits.scatter_add_(1, targets, -weights)


class _Gradients:
    """Gathers the gradients of a loss chunk by chunk; those of the head go into its ``.grad``."""

    def __init__(self, hidden: Tensor, head: Head, *, needs_hidden: bool) -> None:
        self._input = hidden
        self._head = head
        self.hidden = torch.empty_like(hidden) if needs_hidden else None

    def add(self, chunk: Chunk) -> None:
        """Add the products with a chunk that holds dloss/dlogits."""
        rows, head, dz = chunk.rows, self._head, chunk.logits
        if chunk.slope is not None:
            dz.mul_(chunk.slope)
        if head.scale != 1.0:
            dz.mul_(head.scale)
        if self.hidden is not None:
            self.hidden[rows] = dz.to(head.compute.dtype) @ head.compute
        if head.weight.requires_grad:
            gradient_of(head.weight).addmm_(dz.t(), self._input[rows].to(dz.dtype))
        if head.bias is not None and head.bias.requires_grad:
            gradient_of(head.bias).add_(dz.sum(0))


def gradient_of(parameter: Tensor) -> Tensor:
    """The buffer a parameter's gradient gathers in; made of zeros where there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def bytes_of_row(head: Head) -> int:
    """The memory that the logits of a row take, and what is made of them."""
    is_mixed = head.compute.dtype != torch.float32
    bytes_a_logit = 4 + (2 + 2 if is_mixed else 0) + (4 if head.softcap is not None else 0)
    return int(head.compute.shape[0]) * bytes_a_logit


def chunks(hidden: Tensor, head: Head, size: int | None = None) -> Iterator[Chunk]:
    """The logits of all rows, ``size`` at a time; None: as many as ``MAX_CHUNK_BYTES`` of them allow."""
    num_rows, vocab, dtype = hidden.shape[0], head.compute.shape[0], head.compute.dtype
    is_mixed = dtype != torch.float32
    size = min(max(1, size or MAX_CHUNK_BYTES // bytes_of_row(head)), max(1, num_rows))
    buffer = torch.empty(size, vocab, dtype=torch.float32, device=hidden.device)
    products = torch.empty(size, vocab, dtype=dtype, device=hidden.device) if is_mixed else buffer
    slopes = torch.empty_like(buffer) if head.softcap is not None else None
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        logits = buffer[: rows.stop - start]
        torch.mm(hidden[rows].to(dtype), head.compute.t(), out=products[: rows.stop - start])
        if is_mixed:
            logits.copy_(products[: rows.stop - start])
        slope = None if slopes is None else slopes[: rows.stop - start]
        _bend(logits, head, slope)
        yield Chunk(rows, logits, slope)


def _bend(logits: Tensor, head: Head, slope: Tensor | None) -> None:
    """Bend raw logits as the model does, in place; where it squashes them, ``slope`` takes the derivative."""
    if head.bias is not None:
        logits.add_(head.bias)
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_()
        torch.square(logits, out=slope).neg_().add_(1.0)
        logits.mul_(head.softcap)
