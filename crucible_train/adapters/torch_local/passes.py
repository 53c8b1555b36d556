"""A forward (and backward) pass over one stream: hidden states, the loss head, the loss.

Axes: S scored positions, D datums, N positions of a datum.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from crucible_train.adapters.torch_local.divergence_head import DivergenceHead, Rows
from crucible_train.adapters.torch_local.loading import EngineModel, hidden_states
from crucible_train.adapters.torch_local.loss_head import logprobs, weighed_logprobs
from crucible_train.adapters.torch_local.stream import TokenStream
from crucible_train.losses import DistributionLoss, LossFunction, loss_function
from crucible_train.types import CustomLoss, Divergence, Loss


def stream_loss(
    model: EngineModel, stream: TokenStream, loss: Loss, function: LossFunction, *, with_gradient: bool
) -> tuple[float, np.ndarray]:
    """The loss of one micro-batch and its log-probabilities; all else is freed on return. The layout must be set."""
    assert not isinstance(loss, CustomLoss)
    device = model.causal.device
    arrays = (stream.tokens_T, stream.positions_T, stream.rows_S, stream.targets_S, stream.datum_S, stream.weights_S)
    tokens, positions, rows, targets, datum_S, weights_S = (torch.from_numpy(x).to(device) for x in arrays)
    inputs = {name: torch.from_numpy(values).to(device) for name, values in stream.inputs_S.items()}
    hidden = hidden_states(model, tokens, positions)[rows]

    def loss_of(logprobs_S: Tensor, rows: slice) -> Tensor:
        some = {name: values[rows] for name, values in inputs.items()}
        return (function.per_position(loss, logprobs_S, some, datum_S[rows]) * weights_S[rows]).sum()

    def weigh(logprobs_S: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = logprobs_S.detach().requires_grad_()
            value = loss_of(leaf, rows)
            (slope,) = torch.autograd.grad(value, leaf)
        return value.detach(), slope.neg_()

    if not with_gradient:
        found = logprobs(hidden, model.head, targets)
        return float(loss_of(found, slice(None))), found.cpu().numpy()
    if function.scope == "token":
        value, found = weighed_logprobs(hidden, model.head, targets, weigh)
    else:
        found = logprobs(hidden, model.head, targets)
        value = loss_of(found, slice(None))
    value.backward()
    return float(value.detach()), found.detach().cpu().numpy()


def stream_divergence(
    model: EngineModel,
    stream: TokenStream,
    teacher: Rows,
    loss: Divergence,
    function: DistributionLoss,
    *,
    with_gradient: bool,
) -> tuple[float, np.ndarray, float]:
    """The same for a loss of whole distributions, and the divergence alone. The layout must be set."""
    device = model.causal.device
    arrays = (stream.tokens_T, stream.positions_T, stream.rows_S, stream.targets_S, stream.weights_S)
    tokens, positions, rows, targets, weights_S = (torch.from_numpy(x).to(device) for x in arrays)
    student = Rows(hidden_states(model, tokens, positions)[rows], model.head)
    head = DivergenceHead(loss, function, targets, weights_S)
    value, found = head.value(student, teacher)
    if with_gradient:
        value.backward()
    return float(value.detach()), found.cpu().numpy(), head.divergence


def custom_loss(loss: Loss, *, joins_segments: bool) -> CustomLoss | None:
    """The loss as a function of all log-probabilities, where it must be computed as one; None elsewhere.

    A model that cannot join segments computes every sequence in a stream of its own, so that the two sides of a pair
    never meet in one.
    """
    if isinstance(loss, CustomLoss):
        return loss
    function = loss_function(loss)
    if isinstance(function, DistributionLoss) or function.scope != "pair" or joins_segments:
        return None

    def over_all(
        logprobs_D: Sequence[Tensor], inputs_D: Sequence[Mapping[str, Tensor]]
    ) -> tuple[Tensor, Mapping[str, float]]:
        counts_D = [inputs["weights"] != 0 for inputs in inputs_D]
        datum_S = torch.cat([torch.full((int(counts.sum()),), index) for index, counts in enumerate(counts_D)])

        def joined(tensors_D: Sequence[Tensor]) -> Tensor:
            return torch.cat([tensor[counts] for tensor, counts in zip(tensors_D, counts_D, strict=True)])

        inputs_S = {name: joined([inputs[name] for inputs in inputs_D]) for name in function.required}
        loss_S = function.per_position(loss, joined(logprobs_D), inputs_S, datum_S)
        return (loss_S * inputs_S["weights"]).sum(), {}

    return CustomLoss(over_all)
