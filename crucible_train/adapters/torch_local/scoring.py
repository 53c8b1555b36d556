"""Log-probabilities of given tokens, and the most likely ones: all that wait are read in streams, shared parts once.

Axes: N positions of a sequence, S positions of a stream, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crucible_train.adapters.torch_local.attention import LoopLayout
from crucible_train.adapters.torch_local.choosing import Logits
from crucible_train.adapters.torch_local.loading import EngineModel, hidden_states
from crucible_train.adapters.torch_local.loss_head import logprobs
from crucible_train.adapters.torch_local.reading import MAX_TOKENS
from crucible_train.adapters.torch_local.stream import Ints, Scored, TokenStream, micro_batches

_MAX_LOGITS = 8 << 20


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRequest:
    """A sequence to score.

    ``top_k`` 0 asks for each token's log-probability, more for so many pairs of id and log-probability a position.
    The answer has one entry a position, None for the first.
    """

    tokens_N: Ints
    top_k: int = 0
    future: Future[list[Any]] = field(default_factory=Future)


def score(model: EngineModel, requests: Sequence[ScoreRequest]) -> None:
    """Answer all requests."""
    answers: list[list[Any]] = [[None] * request.tokens_N.size for request in requests]
    for asked in ([r.top_k == 0 for r in requests], [r.top_k > 0 for r in requests]):
        items = [_predicting(i, r.tokens_N) for i, r in enumerate(requests) if asked[i] and r.tokens_N.size > 1]
        limit = MAX_TOKENS if model.joins_segments else 0
        for stream in micro_batches(items, limit, share=model.joins_segments):
            found = _most_likely(model, stream, requests) if requests[stream.datum_S[0]].top_k else _own(model, stream)
            for index, place, entry in zip(stream.datum_S.tolist(), stream.place_S.tolist(), found, strict=True):
                answers[index][place + 1] = entry
    for request, answer in zip(requests, answers, strict=True):
        if request.future.set_running_or_notify_cancel():
            request.future.set_result(answer)


def _predicting(index: int, tokens_N: Ints) -> Scored:
    """A sequence without its last token, which predicts nothing: those that differ in that alone are read once."""
    tokens = tokens_N.astype(np.int64)
    num = tokens.size - 1
    return Scored(index, tokens[:-1], np.arange(num), tokens[1:], np.ones(num, np.float32))


def _hidden(model: EngineModel, stream: TokenStream, rows_S: Ints) -> Tensor:
    device = model.causal.device
    with model.attention.using(LoopLayout(stream.segments)):
        hidden = hidden_states(
            model, torch.from_numpy(stream.tokens_T).to(device), torch.from_numpy(stream.positions_T).to(device)
        )
    return hidden[torch.from_numpy(rows_S).to(device)]


def _own(model: EngineModel, stream: TokenStream) -> list[float]:
    # where sequences share a beginning, its targets are the same as well
    scored, place_S = np.unique(np.stack([stream.rows_S, stream.targets_S]), axis=1, return_inverse=True)
    hidden = _hidden(model, stream, scored[0])
    found = logprobs(hidden, model.head, torch.from_numpy(scored[1]).to(hidden.device)).cpu().numpy()
    return list(found[place_S.reshape(-1)].tolist())


def _most_likely(
    model: EngineModel, stream: TokenStream, requests: Sequence[ScoreRequest]
) -> Iterator[list[tuple[int, float]]]:
    hidden, logits = _hidden(model, stream, stream.rows_S), Logits(model.head)
    most = max(requests[index].top_k for index in np.unique(stream.datum_S))
    size = max(1, _MAX_LOGITS // model.head.compute.shape[0])
    for start in range(0, len(hidden), size):
        logits_SV = logits.of(hidden[start : start + size])
        total_S = logits_SV.logsumexp(dim=1, keepdim=True)
        # the least score that belongs to the best, then all of that score by their ids: ties go to the lowest
        best = logits_SV.topk(min(most, logits_SV.shape[1]), dim=1).values[:, -1:]
        for row, index in enumerate(stream.datum_S[start : start + size].tolist()):
            ids = (logits_SV[row] >= best[row]).nonzero().squeeze(1)
            scores = logits_SV[row, ids]
            order = scores.argsort(descending=True, stable=True)[: requests[index].top_k]
            yield list(zip(ids[order].tolist(), (scores[order] - total_S[row]).tolist(), strict=True))
