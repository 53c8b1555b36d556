"""Choosing the next token of every row of a batch at once.

A token is drawn by one uniform number u a row: the first in the order of ids at which the cumulated probability exceeds
u. A row's u are numbers of its own generator, so what else stands in the batch changes nothing; and where rounding has
two tokens change places in a sorted list, none of the two is drawn in place of the other.

Filters are thresholds on a row's scores, not lists of tokens: tokens that tie with the last one kept are kept.

Axes: B rows, F rows with a filter, V vocabulary, S scores in descending order, N blocks of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crucible_train.adapters.torch_local.loss_head import Head
from crucible_train.errors import ModelError
from crucible_train.types import SamplingParams

# The cumulated probabilities are found block by block: a sum of each, then one block a row.
_BLOCK = 256
# The k-th highest score is looked for among those no lower than the k-th highest maximum of blocks of this size.
_SEARCH_BLOCK = 64
# Bounds on scores are lowered by this much, so that rounding cannot leave out a candidate.
_MARGIN = 1e-3


class Logits:
    """Float32 logits of hidden states, in a buffer that the next batch uses again."""

    def __init__(self, head: Head) -> None:
        """The buffer grows with the largest batch."""
        self._head = head
        self._buffer: Tensor | None = None

    def of(self, hidden_BX: Tensor) -> Tensor:
        """Logits as the model bends them, shape (B, V); valid until the next call."""
        head = self._head
        hidden_BX = hidden_BX.to(head.compute.dtype)
        if head.compute.dtype == torch.float32:
            num, vocab = hidden_BX.shape[0], head.compute.shape[0]
            if self._buffer is None or self._buffer.shape[0] < num:
                self._buffer = torch.empty(num, vocab, device=hidden_BX.device)
            logits = torch.mm(hidden_BX, head.compute.t(), out=self._buffer[:num])
        else:
            logits = (hidden_BX @ head.compute.t()).float()
        if head.bias is not None:
            logits.add_(head.bias)
        if head.scale != 1.0:
            logits.mul_(head.scale)
        if head.softcap is not None:
            logits.div_(head.softcap).tanh_().mul_(head.softcap)
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """How the rows of a batch are drawn, as tensors, made anew when rows come or go.

    ``bent`` are the rows drawn from another distribution than the model's own, F those of them that have a filter.
    """

    greedy: Tensor
    plain: Tensor
    bent: Tensor
    temperature_bent: Tensor
    filters_F: Tensor
    top_k_F: Tensor
    top_p_F: Tensor
    min_p_F: Tensor

    @classmethod
    def of(cls, params_B: Sequence[SamplingParams], device: torch.device) -> "Choices":
        """Take the parameters of all rows."""
        filtered = [p.temperature > 0 and (p.top_k > 0 or p.top_p < 1 or p.min_p > 0) for p in params_B]
        plain = [p.temperature == 1 and not has_filter for p, has_filter in zip(params_B, filtered, strict=True)]
        bent = [i for i, p in enumerate(params_B) if p.temperature > 0 and not plain[i]]
        filters = [params_B[i] for i in bent if filtered[i]]

        def rows(found: Sequence[int]) -> Tensor:
            return torch.tensor(found, dtype=torch.long, device=device)

        return cls(
            greedy=rows([i for i, p in enumerate(params_B) if p.temperature == 0]),
            plain=rows([i for i, yes in enumerate(plain) if yes]),
            bent=rows(bent),
            temperature_bent=torch.tensor([[params_B[i].temperature] for i in bent], device=device),
            filters_F=rows([place for place, i in enumerate(bent) if filtered[i]]),
            top_k_F=rows([p.top_k for p in filters]),
            top_p_F=torch.tensor([[p.top_p] for p in filters], dtype=torch.float64, device=device),
            min_p_F=torch.tensor([[p.min_p] for p in filters], device=device),
        )

    def draw(self, logits_BV: Tensor, uniform_B: Tensor) -> tuple[list[int], list[float]]:
        """One token a row and its log-probability at temperature 1. The logits are overwritten.

        Args:
            logits_BV: float32.
            uniform_B: float64 in [0, 1), one a row; greedy rows need none.

        Raises:
            ModelError: a logit is not a number.
        """
        scores_BV = logits_BV.sub_(logits_BV.amax(dim=1, keepdim=True))
        tokens_B = torch.zeros(len(scores_BV), dtype=torch.long, device=scores_BV.device)
        if len(self.greedy):
            tokens_B[self.greedy] = _rows(scores_BV, self.greedy).argmax(dim=1)
        if len(self.bent):
            tokens_B[self.bent] = pick(self._bent_weights(scores_BV), uniform_B[self.bent])
        score_B = scores_BV.gather(1, tokens_B[:, None]).squeeze(1)
        weights_BV = scores_BV.exp_()
        total_B = weights_BV.sum(dim=1)
        if not bool(torch.isfinite(total_B).all()):
            raise ModelError("the model's logits are not finite: it cannot be sampled")
        if len(self.plain):
            tokens_B[self.plain] = pick(_rows(weights_BV, self.plain), uniform_B[self.plain])
            drawn = weights_BV[self.plain, tokens_B[self.plain]]
            score_B[self.plain] = drawn.log()
        return tokens_B.tolist(), (score_B - total_B.log()).tolist()

    def _bent_weights(self, scores_BV: Tensor) -> Tensor:
        """Unnormalised probabilities of the bent rows. The highest score of a row is 0."""
        scores = _rows(scores_BV, self.bent) / self.temperature_bent
        if not len(self.filters_F):
            return scores.exp_()
        weights = scores.exp()
        least = scores.new_full((len(scores), 1), float("-inf"))
        least[self.filters_F] = self._thresholds(_rows(scores, self.filters_F), _rows(weights, self.filters_F))
        return weights.masked_fill_(scores < least, 0.0)

    def _thresholds(self, scores_FV: Tensor, weights_FV: Tensor) -> Tensor:
        """The least score that is kept, shape (F, 1). The highest of a row is 0."""
        vocab = scores_FV.shape[1]
        least_F = self.min_p_F.log()
        k_F = torch.where(self.top_k_F > 0, self.top_k_F, vocab).clamp(max=vocab)[:, None]
        has_k, has_p = k_F < vocab, self.top_p_F < 1
        if not bool((has_k | has_p).any()):
            return least_F
        total_F = weights_FV.sum(dim=1, keepdim=True).double()
        # tokens less probable than this are together no more than what top_p may leave out
        bound_F = ((1 - self.top_p_F) * total_F / vocab).log().sub_(_MARGIN).float()
        bound_F = torch.where(has_k, _bound_of_kth(scores_FV, k_F), bound_F.masked_fill(~has_p, 0.0))
        sorted_FS = _descending(scores_FV, bound_F)
        at_k = sorted_FS.gather(1, (k_F - 1).clamp(max=sorted_FS.shape[1] - 1)).masked_fill(~has_k, float("-inf"))
        weights_FS = sorted_FS.double().exp().masked_fill_(sorted_FS < at_k, 0.0)
        total_F = torch.where(has_k, weights_FS.sum(dim=1, keepdim=True), total_F)
        is_kept = weights_FS.cumsum(dim=1) - weights_FS < self.top_p_F * total_F
        last = is_kept.sum(dim=1, keepdim=True).sub_(1).clamp_(min=0)
        at_p = sorted_FS.gather(1, last).masked_fill(~has_p, float("-inf"))
        return torch.maximum(least_F, torch.maximum(at_k, at_p))


def _bound_of_kth(scores_FV: Tensor, k_F: Tensor) -> Tensor:
    """A score that the ``k``-th highest of each row is no lower than: that of the ``k``-th highest block."""
    padded = torch.nn.functional.pad(scores_FV, (0, -scores_FV.shape[1] % _SEARCH_BLOCK), value=float("-inf"))
    highest_FN = padded.unflatten(1, (-1, _SEARCH_BLOCK)).amax(dim=2).sort(dim=1, descending=True).values
    num = highest_FN.shape[1]
    return highest_FN.gather(1, k_F.clamp(max=num) - 1).masked_fill(k_F > num, float("-inf"))


def _descending(scores_FV: Tensor, least_F: Tensor) -> Tensor:
    """The scores of each row that are no less than ``least``, in descending order, filled up with -inf: (F, S)."""
    is_candidate = scores_FV >= least_F
    row, column = is_candidate.nonzero(as_tuple=True)
    count_F = row.bincount(minlength=len(scores_FV))
    starts_F = count_F.cumsum(0) - count_F
    table = scores_FV.new_full((len(scores_FV), max(1, int(count_F.max()))), float("-inf"))
    table[row, torch.arange(len(row), device=row.device) - starts_F[row]] = scores_FV[row, column]
    return table.sort(dim=1, descending=True).values


def pick(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token of each row at which the cumulated share of the weights exceeds the row's number in [0, 1)."""
    vocab = weights_BV.shape[1]
    whole = vocab - vocab % _BLOCK
    sums_BN = weights_BV[:, :whole].unflatten(1, (-1, _BLOCK)).sum(dim=2)
    if whole < vocab:
        sums_BN = torch.cat([sums_BN, weights_BV[:, whole:].sum(dim=1, keepdim=True)], dim=1)
    sums_BN = sums_BN.double()
    cumulated_BN = sums_BN.cumsum(dim=1)
    wanted_B = _below(uniform_B[:, None] * cumulated_BN[:, -1:], cumulated_BN[:, -1:])
    block_B = (cumulated_BN <= wanted_B).sum(dim=1, keepdim=True)
    columns = block_B * _BLOCK + torch.arange(_BLOCK, device=weights_BV.device)
    inside = (
        weights_BV.gather(1, columns.clamp(max=vocab - 1)).double().masked_fill_(columns >= vocab, 0.0).cumsum(dim=1)
    )
    rest_B = wanted_B - (cumulated_BN.gather(1, block_B) - sums_BN.gather(1, block_B))
    rest_B = _below(rest_B.clamp_(min=0.0), inside[:, -1:])
    return block_B.squeeze(1) * _BLOCK + (inside <= rest_B).sum(dim=1)


def _below(value: Tensor, bound: Tensor) -> Tensor:
    """The value, or what is just below the bound where rounding has taken it there."""
    return torch.minimum(value, torch.nextafter(bound, torch.zeros_like(bound)))


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    return table if len(rows) == len(table) else table[rows]
