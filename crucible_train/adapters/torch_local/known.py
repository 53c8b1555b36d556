"""Keys and values of sequences that were read or written with the weights as they are.

They form a tree: a node holds those of a stretch of tokens that stands behind some position of its parent. A prompt
finds the longest beginning of it that is known, be it another prompt's, a shared system prompt or the answer it goes on
from, and only the rest is computed. What nobody uses is dropped, the longest unused first, to stay within a number of
bytes.

Axes: K key heads, N tokens of a node, E head width, X hidden width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crucible_train.adapters.torch_local.stream import MIN_SHARED_TOKENS, Ints, shared_prefix

# Attention is computed in float32 in training, whatever the precision of products. Rounded keys would give other
# log-probabilities than the trainer's, and small products are no faster in bfloat16 on a processor.
CACHE_DTYPE = torch.float32
# Keys and values of a stretch of tokens, (K, N, E) each, a pair a layer.
Layers = list[tuple[Tensor, Tensor]]


@dataclass(slots=True, eq=False)
class Node:
    """A stretch of tokens; the first of them is position ``start`` of its sequence.

    Attributes:
        parent: what stands before it; None at the beginning of a sequence.
        start: how many tokens of the parent's sequence stand before it, which may be fewer than the parent has.
        tokens_N: ids.
        layers: their keys and values.
        hidden_X: the last hidden state of the last token, where it is known.
        users: rows that are being written behind it.
        last_used: when it was last found or made.
    """

    parent: "Node | None"
    start: int
    tokens_N: Ints
    layers: Layers
    hidden_X: Tensor | None = None
    users: int = 0
    last_used: int = 0
    children: list["Node"] = field(default_factory=list)

    @property
    def end(self) -> int:
        """How many tokens a sequence has that ends with it."""
        return self.start + int(self.tokens_N.size)

    @property
    def num_bytes(self) -> int:
        """The memory of its keys and values."""
        return sum(x.numel() * x.element_size() for pair in self.layers for x in pair)


@dataclass(frozen=True, slots=True)
class Place:
    """The first ``length`` tokens of a sequence that runs through ``node``; no node where there are none."""

    node: Node | None
    length: int

    def stretches(self) -> Iterator[tuple[Node, int]]:
        """The nodes from the beginning on, each with how many of its tokens belong to the sequence."""
        found: list[tuple[Node, int]] = []
        node, length = self.node, self.length
        while node is not None:
            found.append((node, length - node.start))
            length, node = node.start, node.parent
        return reversed(found)


class KnownSequences:
    """The tree, and what is kept of it."""

    def __init__(self, max_bytes: int) -> None:
        """Nodes without users are kept up to ``max_bytes``."""
        self._max_bytes = max_bytes
        self._roots: list[Node] = []
        self._nodes: set[Node] = set()
        self._num_bytes = 0
        self._clock = 0

    @property
    def num_bytes(self) -> int:
        """The memory of all nodes."""
        return self._num_bytes

    def find(self, tokens: Ints) -> Place:
        """The longest beginning of ``tokens`` that is known.

        Unless the hidden state of its last token is known, too, that token is left out: it is to be computed.
        """
        found = self._longest(tokens)
        if found.length == tokens.size:
            if _has_hidden(found):
                return found
            found = _shortened(found)
        return found if found.length >= MIN_SHARED_TOKENS else Place(None, 0)

    def add(self, before: Place, tokens_N: Ints, layers: Layers, hidden_X: Tensor | None = None) -> Node:
        """Keep a stretch that stands behind ``before``."""
        node = Node(before.node, before.length, tokens_N, layers, hidden_X)
        (self._roots if before.node is None else before.node.children).append(node)
        self._nodes.add(node)
        self._num_bytes += node.num_bytes
        self._touch(node)
        return node

    def use(self, node: Node, num: int) -> None:
        """Count rows that are written behind a node; a negative number when they end."""
        node.users += num

    def shrink(self) -> None:
        """Drop what nobody uses, the longest unused first, until the rest fits."""
        while self._num_bytes > self._max_bytes:
            unused = [node for node in self._nodes if not node.users and not node.children]
            if not unused:
                return
            for node in sorted(unused, key=lambda node: node.last_used):
                self._remove(node)
                if self._num_bytes <= self._max_bytes:
                    return

    def forget(self) -> None:
        """Drop all: the weights have changed."""
        self._roots.clear()
        self._nodes.clear()
        self._num_bytes = 0

    def _longest(self, tokens: Ints) -> Place:
        place, siblings = Place(None, 0), self._roots
        while True:
            best, rank = place, (place.length, _has_hidden(place))
            for node in siblings:
                if node.start > place.length or node.tokens_N[0] != tokens[node.start]:
                    continue
                found = Place(node, node.start + shared_prefix(node.tokens_N, tokens[node.start :]))
                if (found.length, _has_hidden(found)) > rank:
                    best, rank = found, (found.length, _has_hidden(found))
            if best.node is None or best.node is place.node:
                return best
            self._touch(best.node)
            if best.length == tokens.size and rank[1]:
                return best
            place, siblings = best, [child for child in best.node.children if child.start < tokens.size]

    def _touch(self, node: Node) -> None:
        self._clock += 1
        node.last_used = self._clock

    def _remove(self, node: Node) -> None:
        (self._roots if node.parent is None else node.parent.children).remove(node)
        self._nodes.remove(node)
        self._num_bytes -= node.num_bytes


def joined(place: Place) -> Layers:
    """Keys and values of all tokens of a sequence; those of the node itself where it has all of them."""
    stretches = list(place.stretches())
    if len(stretches) == 1:
        node, num = stretches[0]
        return [(keys[:, :num], values[:, :num]) for keys, values in node.layers]
    return [
        _cat([(node.layers[layer], num) for node, num in stretches]) for layer in range(len(stretches[0][0].layers))
    ]


def _cat(parts: Sequence[tuple[tuple[Tensor, Tensor], int]]) -> tuple[Tensor, Tensor]:
    keys, values = ([pair[which][:, :num] for pair, num in parts] for which in (0, 1))
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def _has_hidden(place: Place) -> bool:
    node = place.node
    return node is not None and node.end == place.length and node.hidden_X is not None


def _shortened(place: Place) -> Place:
    """One token less."""
    node, length = place.node, place.length - 1
    while node is not None and node.start >= length:
        node = node.parent
    return Place(node, length if node is not None else 0)
