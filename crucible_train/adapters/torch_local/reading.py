"""Reading prompts: what is not known of them yet is computed in one stream, where what several share stands once.

Axes: P prompts, T positions of a stream, X hidden width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crucible_train.adapters.torch_local.attention import LoopLayout, Scores, attend_causally
from crucible_train.adapters.torch_local.known import CACHE_DTYPE, KnownSequences, Layers, Node, Place
from crucible_train.adapters.torch_local.loading import EngineModel, hidden_states
from crucible_train.adapters.torch_local.stream import NO_PARENT, Ints, Scored, Segment, build_stream

# Positions computed at once: more would only take more memory.
MAX_TOKENS = 1024


def read(model: EngineModel, known: KnownSequences, prompts: Sequence[Ints]) -> tuple[list[Node], int]:
    """The node each prompt ends with, its last hidden state known, and how many positions were computed."""
    nodes: list[Node] = []
    num_computed = 0
    while len(nodes) < len(prompts):
        chunk: list[tuple[Ints, Place]] = []
        size = 0
        for prompt in prompts[len(nodes) :]:
            place = _find(model, known, prompt)
            num = prompt.size - place.length
            if chunk and num and (size + num > MAX_TOKENS or not model.joins_segments):
                break
            chunk.append((prompt, place))
            size += num
        found, computed = _read_chunk(model, known, chunk)
        nodes += found
        num_computed += computed
    return nodes, num_computed


def whole(index: int, tokens: Ints) -> Scored:
    """A sequence whose every position is kept; each but the last predicts its successor."""
    tokens = tokens.astype(np.int64)
    targets = np.append(tokens[1:], 0)
    return Scored(index, tokens, np.arange(tokens.size), targets, np.ones(tokens.size, np.float32))


def _find(model: EngineModel, known: KnownSequences, prompt: Ints) -> Place:
    place = known.find(prompt)
    # a model that mixes tokens in other ways than attention cannot go on from keys and values alone
    return place if model.joins_segments or place.length == prompt.size else Place(None, 0)


def _read_chunk(
    model: EngineModel, known: KnownSequences, chunk: Sequence[tuple[Ints, Place]]
) -> tuple[list[Node], int]:
    """Compute what the places leave of their prompts, in one stream."""
    behind: dict[Place, list[Scored]] = {}
    for index, (prompt, place) in enumerate(chunk):
        if place.length < prompt.size:
            behind.setdefault(place, []).append(whole(index, prompt[place.length :]))
    nodes = {index: place.node for index, (prompt, place) in enumerate(chunk) if place.length == prompt.size}
    if behind:
        stream = _Stream()
        for place, items in behind.items():
            stream.add(place, items)
        nodes |= stream.compute(model, known)
    found = [node for _, node in sorted(nodes.items()) if node is not None]
    assert len(found) == len(chunk)
    return found, sum(len(segment) for segment in stream.segments) if behind else 0


class _Stream:
    """The stretches to be computed. It is their cache and their layout: it keeps what layers give, for the nodes."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._before: list[Place] = []
        self._tokens: list[Ints] = []
        self._last_segment: dict[int, int] = {}
        self._layers: Layers = []

    def add(self, place: Place, items: Sequence[Scored]) -> None:
        """Add prompts that go on from one place; each item's index tells it."""
        stream = build_stream(items)
        base, start = len(self.segments), sum(len(segment) for segment in self.segments)
        by_end = {segment.end - 1: base + number for number, segment in enumerate(stream.segments)}
        for item, row in zip(stream.datum_S, stream.rows_S, strict=True):
            self._last_segment[int(item)] = by_end.get(int(row), -1)  # the last of an item's rows ends its last segment
        for segment in stream.segments:
            parent = NO_PARENT if segment.parent == NO_PARENT else base + segment.parent
            self.segments.append(
                Segment(start + segment.start, start + segment.end, parent, place.length + segment.offset)
            )
            self._before.append(place)
            self._tokens.append(stream.tokens_T[segment.start : segment.end])

    def compute(self, model: EngineModel, known: KnownSequences) -> dict[int, Node]:
        """Run the model; the node each item ends with."""
        device = model.causal.device
        tokens = torch.from_numpy(np.concatenate(self._tokens)).to(device)
        positions = torch.cat([torch.arange(s.offset, s.offset + len(s)) for s in self.segments]).to(device)
        with model.attention.using(self):
            hidden_TX = hidden_states(model, tokens, positions, self)
        ends = set(self._last_segment.values())
        nodes: list[Node] = []
        for index, segment in enumerate(self.segments):
            own = slice(segment.start, segment.end)
            before = self._before[index]
            if segment.parent != NO_PARENT:
                before = Place(nodes[segment.parent], segment.offset)
            layers = [(_kept(keys, own), _kept(values, own)) for keys, values in self._layers]
            hidden_X = hidden_TX[segment.end - 1].clone() if index in ends else None
            nodes.append(known.add(before, self._tokens[index], layers, hidden_X))
        return {item: nodes[segment] for item, segment in self._last_segment.items()}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keep a layer's keys and values, (1, K, T, E)."""
        assert layer == len(self._layers)
        self._layers.append((key, value))
        return key, value

    def get_seq_length(self, *_: object) -> int:
        """Nothing stands before the stream: its positions are told."""
        return 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of shape (1, H, T, E)."""
        if all(place.node is None for place in self._before):
            return LoopLayout(self.segments).attend(query, key, value, scores)
        layer = len(self._layers) - 1
        lengths = [len(segment) for segment in self.segments]
        queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value.to(query.dtype)))
        seen: list[tuple[Tensor, Tensor]] = []
        outputs = []
        for segment, place, q, k, v in zip(self.segments, self._before, queries, keys, values, strict=True):
            if segment.parent != NO_PARENT:
                parts = [seen[segment.parent]]
            else:
                parts = [_stretch(node, num, layer) for node, num in place.stretches()]
            k = torch.cat([*(part.to(k.dtype) for part, _ in parts), k], dim=2)
            v = torch.cat([*(part.to(v.dtype) for _, part in parts), v], dim=2)
            seen.append((k, v))
            outputs.append(attend_causally(q, k, v, scores))
        return torch.cat(outputs, dim=2)


def _stretch(node: Node, num: int, layer: int) -> tuple[Tensor, Tensor]:
    keys, values = node.layers[layer]
    return keys[None, :, :num], values[None, :, :num]


def _kept(table: Tensor, own: slice) -> Tensor:
    return table[0, :, own].to(CACHE_DTYPE, copy=True, memory_format=torch.contiguous_format)
