"""Attention over a token stream, registered with transformers: no model code is forked.

Every model that goes through transformers' attention interface calls ``SegmentAttention`` with its queries, keys and
values; what may see what is decided by the layout set for the pass. On a processor each segment is one call of torch's
scaled-dot-product attention; on a GPU the whole stream is one flex-attention call whose block mask follows them.

Axes: H query heads, K key heads, T positions, C positions in the cache, B rows of a decoding batch, E head width.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel

from crucible_train.adapters.torch_local.stream import NO_PARENT, Segment
from crucible_train.errors import ModelError

_names = (f"crucible_{number}" for number in itertools.count())
# Queries are masked block by block where a mask is needed, so that no mask grows with the square of a long sequence.
_QUERY_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer turns products of queries and keys into scores.

    Attributes:
        scale: factor on the products.
        window: positions a query sees, itself included; None sees all before it.
        softcap: scores are squashed to this bound by tanh; None leaves them.
        sinks_H: one extra logit a head that takes probability and gives nothing; None for none.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether torch's fused attention computes it."""
        return self.softcap is None and self.sinks_H is None


class Layout(Protocol):
    """What may see what in one pass."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of shape (1 or B, H, T, E). Values may be of less precision than queries."""


class SegmentAttention:
    """The attention function of one model. ``layout`` says what may see what; it is set for the length of a pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Register with transformers under a name of its own and switch the model to it."""
        self.name = next(_names)
        self._layout: Layout | None = None
        AttentionInterface.register(self.name, self)  # a name without a mask function: transformers builds no mask
        model.set_attn_implementation(self.name)

    @contextmanager
    def using(self, layout: Layout) -> Iterator[None]:
        """Use ``layout`` until the block ends; a backward pass that recomputes must lie inside."""
        self._layout = layout
        try:
            yield
        finally:
            self._layout = None

    def __call__(  # noqa: PLR0913 - the signature is transformers'
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Attention of shape (1 or B, T, H, E), as transformers wants it."""
        if self._layout is None:
            raise RuntimeError("attention was called outside a pass of the engine")
        if dropout:
            raise ModelError("attention dropout is not supported; set attention_dropout to 0 in the model's config")
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        scores = Scores(scale, sliding_window, softcap, s_aux)
        return self._layout.attend(query, key, value, scores).transpose(1, 2), None


@dataclass(frozen=True, slots=True)
class LoopLayout:
    """One call of torch's attention a segment: the processor's way, and the reference."""

    segments: Sequence[Segment]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of shape (1, H, T, E)."""
        lengths = [len(segment) for segment in self.segments]
        queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value.to(query.dtype)))
        seen: list[tuple[Tensor, Tensor]] = []
        outputs = []
        for segment, q, k, v in zip(self.segments, queries, keys, values, strict=True):
            if segment.parent != NO_PARENT:
                parent_k, parent_v = seen[segment.parent]
                k, v = torch.cat([parent_k, k], dim=2), torch.cat([parent_v, v], dim=2)
            seen.append((k, v))
            outputs.append(attend_causally(q, k, v, scores))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def attend_causally(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    """Attention of the last ``query.shape[2]`` positions of a sequence over all of it, shape (1, H, T, E)."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if scores.is_plain and num_queries == num_keys and (scores.window is None or num_keys <= scores.window):
        return _fused(query, key, value, scores, None, is_causal=True)
    outputs = []
    for start in range(0, num_queries, _QUERY_BLOCK):
        end = min(start + _QUERY_BLOCK, num_queries)
        num_seen = num_keys - num_queries + end
        rows = torch.arange(num_seen - (end - start), num_seen, device=query.device)
        columns = torch.arange(num_seen, device=query.device)
        is_seen = columns <= rows[:, None]
        if scores.window is not None:
            is_seen &= columns > rows[:, None] - scores.window
        outputs.append(
            attend_masked(query[:, :, start:end], key[:, :, :num_seen], value[:, :, :num_seen], scores, is_seen)
        )
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def attend_masked(query: Tensor, key: Tensor, value: Tensor, scores: Scores, is_seen: Tensor) -> Tensor:
    """Attention where ``is_seen`` (broadcast to queries by keys) says what a query may see."""
    if scores.is_plain:
        return _fused(query, key, value, scores, is_seen, is_causal=False)
    num_groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(num_groups, dim=1), value.repeat_interleave(num_groups, dim=1)
    logits = (query.float() @ key.float().transpose(2, 3)) * scores.scale
    if scores.softcap is not None:
        logits = torch.tanh(logits / scores.softcap) * scores.softcap
    logits = logits.masked_fill(~is_seen, float("-inf"))
    if scores.sinks_H is not None:
        sinks = scores.sinks_H.float().reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sinks], dim=3)
    probabilities = torch.softmax(logits, dim=3)[..., : key.shape[2]]
    return (probabilities @ value.float()).to(query.dtype)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, scores: Scores, mask: Tensor | None, *, is_causal: bool
) -> Tensor:
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scores.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


@cache
def compiled_flex_attention() -> Any:
    """Flex attention as one kernel; uncompiled it would hold the whole table of scores."""
    return torch.compile(flex_attention, dynamic=True)


class FlexLayout:
    """One flex-attention call for the whole stream: the GPU's way. The block mask is built once a stream and window."""

    def __init__(self, segments: Sequence[Segment], device: torch.device, attend: Any = flex_attention) -> None:
        """Describe each position by its segment, and each segment by the ancestors its positions may see."""
        self._attend = attend
        self._device = device
        self._num_tokens = segments[-1].end
        num = len(segments)
        sees = torch.eye(num, dtype=torch.bool)
        for index, segment in enumerate(segments):
            if segment.parent != NO_PARENT:
                sees[index] |= sees[segment.parent]
        self._sees = sees.to(device)
        lengths = torch.tensor([len(segment) for segment in segments])
        self._segment_T = torch.repeat_interleave(torch.arange(num), lengths).to(device)
        self._position_T = torch.cat([torch.arange(s.offset, s.offset + len(s)) for s in segments]).to(device)
        self._masks: dict[int | None, BlockMask] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of shape (1, H, T, E)."""
        if scores.sinks_H is not None:
            raise ModelError("attention sinks are computed on a processor only")
        cap = scores.softcap
        score_mod = None if cap is None else (lambda score, *_: cap * torch.tanh(score / cap))
        return self._attend(
            query,
            key,
            value.to(query.dtype),
            score_mod=score_mod,
            block_mask=self._mask(scores.window),
            scale=scores.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _mask(self, window: int | None) -> BlockMask:
        if window not in self._masks:
            sees, segment, position = self._sees, self._segment_T, self._position_T

            def is_seen(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
                causal = sees[segment[q], segment[k]] & (position[k] <= position[q])
                return causal if window is None else causal & (position[k] > position[q] - window)

            num = self._num_tokens
            self._masks[window] = create_block_mask(is_seen, None, None, num, num, device=self._device)
        return self._masks[window]
