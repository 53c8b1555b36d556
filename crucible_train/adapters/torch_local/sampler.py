"""Writing with the weights that are being trained, no copy of them.

All prompts that wait are read as one stream, where samples of one prompt share it; then every pass writes one token a
row, and finished rows are dropped.

Axes: B rows, V vocabulary, X hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crucible_train.adapters.torch_local.attention import LoopLayout
from crucible_train.adapters.torch_local.cache import KeyValueCache, StepLayout
from crucible_train.adapters.torch_local.loading import EngineModel, hidden_states
from crucible_train.adapters.torch_local.loss_head import Head, logprobs
from crucible_train.adapters.torch_local.stream import Scored, Segment, build_stream
from crucible_train.types import SamplingParams, TokensWithLogprobs

MAX_CACHE_BYTES = 512 << 20
# Dropping rows copies the cache, so it waits until at least this share of them is done.
_DROP_SHARE = 0.25


@dataclass(slots=True, eq=False)
class _Row:
    """One answer that is being written."""

    prompt: np.ndarray
    params: SamplingParams
    draws: np.random.Generator
    decode: Callable[[Sequence[int]], str]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def stop_reason(self) -> Literal["stop", "length"] | None:
        """Why nothing more is written, or None."""
        if self.tokens and (self.tokens[-1] in self.params.stop_token_ids or self._holds_stop_text()):
            return "stop"
        return "length" if len(self.tokens) >= self.params.max_tokens else None

    def _holds_stop_text(self) -> bool:
        """Whether the last tokens hold a stop text; a token is a byte of text at least, a character four at most."""
        if not self.params.stop_texts:
            return False
        text = self.decode(self.tokens[-4 * max(map(len, self.params.stop_texts)) - 1 :])
        return any(stop in text for stop in self.params.stop_texts)


@torch.no_grad()
def write(
    model: EngineModel,
    requests: Sequence[tuple[np.ndarray, int, SamplingParams]],
    decode: Callable[[Sequence[int]], str],
    is_given_up: Callable[[], bool] = lambda: False,
) -> list[TokensWithLogprobs]:
    """Answer requests of (prompt ids, which of its samples, parameters), in their order.

    ``decode`` gives the text of tokens, for stop texts. Once ``is_given_up`` says so nothing more is written, and what
    there is comes back as if it had reached its length.
    """
    rows = [
        _Row(prompt, params, np.random.Generator(np.random.Philox(key=[params.seed, sample])), decode)
        for prompt, sample, params in requests
    ]
    # Rows of like length stand together, so that a batch reserves little more than it uses.
    order = sorted(range(len(rows)), key=lambda i: (rows[i].prompt.size + rows[i].params.max_tokens, i))
    start = 0
    while start < len(order) and not is_given_up():
        end = start + 1
        while end < len(order) and _cache_bytes(model, [rows[i] for i in order[start : end + 1]]) <= MAX_CACHE_BYTES:
            end += 1
        _write_batch(model, [rows[i] for i in order[start:end]], is_given_up)
        start = end
    return [TokensWithLogprobs(tuple(row.tokens), tuple(row.logprobs), row.stop_reason or "length") for row in rows]


@torch.no_grad()
def score(model: EngineModel, tokens_T: np.ndarray) -> list[float]:
    """The log-probability of every token but the first."""
    item = _whole(0, tokens_T)
    stream = build_stream([item])
    hidden = _read_stream(model, stream.tokens_T, stream.positions_T, stream.segments, None)
    rows, targets = (torch.from_numpy(x).to(hidden.device) for x in (stream.rows_S, stream.targets_S))
    return logprobs(hidden[rows], model.head, targets).tolist()[:-1]


def _write_batch(model: EngineModel, rows: list[_Row], is_given_up: Callable[[], bool]) -> None:
    capacity = max(row.prompt.size + row.params.max_tokens for row in rows)
    cache = KeyValueCache(len(rows), capacity, model.precision.dtype)
    hidden_BX = _read_prompts(model, rows, cache)
    active = list(rows)
    while True:
        _choose(active, _logits(hidden_BX, model.head))
        going = [i for i, row in enumerate(active) if row.stop_reason is None]
        if not going or is_given_up():
            return
        if len(active) - len(going) >= _DROP_SHARE * len(active):
            active = [active[i] for i in going]
            cache.keep(torch.tensor(going))
        tokens = torch.tensor([row.tokens[-1] for row in active])
        cache.expect_step()
        positions = cache.lengths_B.clone()
        with model.attention.using(StepLayout(positions.to(model.causal.device))):
            output = model.decoder(
                input_ids=tokens[:, None].to(model.causal.device),
                position_ids=positions[:, None].to(model.causal.device),
                past_key_values=cache,
                use_cache=True,
            )
        cache.advance()
        hidden_BX = output.last_hidden_state[:, -1]


def _read_prompts(model: EngineModel, rows: Sequence[_Row], cache: KeyValueCache) -> Tensor:
    """Fill the cache with the prompts; the hidden state of each prompt's last token, shape (B, X)."""
    items = [_whole(index, row.prompt) for index, row in enumerate(rows)]
    groups = [items] if model.joins_segments else [[item] for item in items]
    last: dict[int, Tensor] = {}
    for group in groups:
        stream = build_stream(group)
        ends = {segment.end - 1: index for index, segment in enumerate(stream.segments)}
        final_row = {int(d): int(r) for d, r in zip(stream.datum_S, stream.rows_S, strict=True)}
        cache.expect_stream(stream.segments, [(item.index, ends[final_row[item.index]]) for item in group])
        hidden = _read_stream(model, stream.tokens_T, stream.positions_T, stream.segments, cache)
        last |= {item.index: hidden[final_row[item.index]] for item in group}
    return torch.stack([last[index] for index in range(len(rows))])


def _read_stream(
    model: EngineModel, tokens: np.ndarray, positions: np.ndarray, segments: tuple[Segment, ...], cache: object
) -> Tensor:
    device = model.causal.device
    with model.attention.using(LoopLayout(segments)):
        return hidden_states(model, torch.from_numpy(tokens).to(device), torch.from_numpy(positions).to(device), cache)


def _whole(index: int, tokens: np.ndarray) -> Scored:
    """A sequence whose every position is kept; each but the last predicts its successor."""
    tokens = tokens.astype(np.int64)
    targets = np.append(tokens[1:], 0)
    return Scored(index, tokens, np.arange(tokens.size), targets, np.ones(tokens.size, np.float32))


def _logits(hidden_BX: Tensor, head: Head) -> Tensor:
    logits = (hidden_BX.to(head.compute.dtype) @ head.compute.t()).float()
    if head.bias is not None:
        logits += head.bias
    logits *= head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits


def _choose(rows: Sequence[_Row], logits_BV: Tensor) -> None:
    """Append one token and its log-probability at temperature 1 to every row that is still written."""
    normaliser_B = logits_BV.logsumexp(dim=1)
    greedy_B = logits_BV.argmax(dim=1)
    for index, row in enumerate(rows):
        if row.stop_reason is not None:
            continue
        token = int(greedy_B[index]) if row.params.temperature == 0 else _draw(row, logits_BV[index])
        row.tokens.append(token)
        row.logprobs.append(float(logits_BV[index, token] - normaliser_B[index]))


def _draw(row: _Row, logits_V: Tensor) -> int:
    """Draw from the smallest set of tokens that reaches ``top_p``.

    Every token runs against a clock of its own, and the first to arrive wins, which is as likely as its probability.
    Unlike a threshold in a sorted list, that leaves the winner as it is where rounding has two others change places.
    """
    scores_V = logits_V.double() / row.params.temperature
    if row.params.top_p < 1:
        probabilities, tokens = torch.softmax(scores_V, dim=0).sort(descending=True, stable=True)
        is_beyond = probabilities.cumsum(0) - probabilities >= row.params.top_p
        scores_V[tokens[is_beyond]] = float("-inf")
    clocks_V = torch.from_numpy(row.draws.standard_exponential(scores_V.numel())).to(scores_V.device)
    return int((scores_V - clocks_V.log()).argmax())


def _cache_bytes(model: EngineModel, rows: Sequence[_Row]) -> int:
    config = model.causal.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    capacity = max(row.prompt.size + row.params.max_tokens for row in rows)
    return len(rows) * capacity * config.num_hidden_layers * 2 * heads * width * model.precision.dtype.itemsize
