"""Attention over a stream beside a dense mask that is built from the sequences alone."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from crucible_train.adapters.torch_local import attention
from crucible_train.adapters.torch_local.attention import FlexLayout, Layout, LoopLayout, Scores
from crucible_train.adapters.torch_local.backend import LocalBackend
from crucible_train.adapters.torch_local.stream import Scored, TokenStream, build_stream
from crucible_train.errors import ModelError
from crucible_train.losses import LOSSES
from crucible_train.types import CrossEntropy, Datum

WIDTH = 8
Layouts = Callable[[TokenStream], Layout]
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])
SCORES = {
    "plain": Scores(0.3),
    "window": Scores(0.3, window=7),
    "window of one": Scores(0.3, window=1),
    "softcap": Scores(2.0, softcap=1.5),
    "window and softcap": Scores(2.0, window=25, softcap=1.5),
}
WITH_SINKS = {
    "sinks": Scores(0.3, sinks_H=SINKS),
    "sinks, window and softcap": Scores(2.0, window=9, softcap=1.5, sinks_H=SINKS),
}


def loop(stream: TokenStream) -> Layout:
    return LoopLayout(stream.segments)


def flex(stream: TokenStream) -> Layout:
    return FlexLayout(stream.segments, torch.device("cpu"))


def whole(index: int, *parts: np.ndarray) -> Scored:
    tokens = np.concatenate(parts).astype(np.int64)
    return Scored(index, tokens, np.arange(tokens.size), tokens, np.ones(tokens.size, np.float32))


def family() -> list[Scored]:
    """Three levels of shared beginnings, two sequences beside them, one another's beginning, one token alone."""
    system, question, answer = np.arange(20), np.arange(18) + 100, np.arange(17) + 200
    return [
        whole(0, system, question, answer, [1, 2, 3]),
        whole(1, system, question, answer, [4]),
        whole(2, system, question, [5] * 9),
        whole(3, system, [6] * 12),
        whole(4, np.arange(23) + 300),
        whole(5, system, question),
        whole(6, [7]),
    ]


def visible(stream: TokenStream, items: list[Scored]) -> Tensor:
    """(T, T): whether the first position may see the second, by the sequences alone.

    Position i belongs to the sequences that are scored there; it sees a position j that holds an earlier token of one
    of them. Which j that is follows from the scores too: a row is where a sequence has its n-th token.
    """
    seen = torch.zeros(stream.num_tokens, stream.num_tokens, dtype=torch.bool)
    rows: dict[int, dict[int, int]] = {item.index: {} for item in items}
    for datum, place, row in zip(stream.datum_S, stream.place_S, stream.rows_S, strict=True):
        rows[datum][place] = row
    for item in items:
        for place, row in rows[item.index].items():
            for before in range(place + 1):
                seen[row, rows[item.index][before]] = True
    return seen


def oracle(query: Tensor, key: Tensor, value: Tensor, scores: Scores, seen: Tensor, positions: Tensor) -> Tensor:
    """Attention in float64 with a dense mask."""
    query, key, value = query.double(), key.double(), value.double()
    out = torch.zeros_like(query)
    for head in range(query.shape[1]):
        kv = head * key.shape[1] // query.shape[1]
        logits = query[0, head] @ key[0, kv].T * scores.scale
        if scores.softcap is not None:
            logits = scores.softcap * torch.tanh(logits / scores.softcap)
        mask = seen if scores.window is None else seen & (positions[:, None] - positions[None] < scores.window)
        weights = torch.where(mask, logits.exp(), 0.0)
        sink = 0.0 if scores.sinks_H is None else float(scores.sinks_H[head].exp())
        out[0, head] = (weights / (weights.sum(1, keepdim=True) + sink)) @ value[0, kv]
    return out


def assert_equals_oracle(make: Layouts, scores: Scores, num_heads: int, num_key_heads: int) -> None:
    items = family()
    stream = build_stream(items)
    assert {s.parent for s in stream.segments} > {-1, 0}
    torch.manual_seed(0)
    query = torch.randn(1, num_heads, stream.num_tokens, WIDTH)
    key, value = (torch.randn(1, num_key_heads, stream.num_tokens, WIDTH) for _ in range(2))
    expected = oracle(query, key, value, scores, visible(stream, items), torch.from_numpy(stream.positions_T))
    found = make(stream).attend(query, key, value, scores)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_heads", [(4, 4), (4, 2), (4, 1)], ids=["one to one", "two a group", "all one group"])
@pytest.mark.parametrize("scores", [*SCORES.values(), *WITH_SINKS.values()], ids=[*SCORES, *WITH_SINKS])
def test_a_call_a_segment_equals_the_dense_mask(scores: Scores, num_heads: tuple[int, int]) -> None:
    assert_equals_oracle(loop, scores, *num_heads)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_one_flex_call_equals_the_dense_mask(scores: Scores) -> None:
    assert_equals_oracle(flex, scores, 4, 2)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 5)
    for scores in (SCORES["window"], SCORES["window and softcap"], WITH_SINKS["sinks"], SCORES["plain"]):
        assert_equals_oracle(loop, scores, 4, 2)


def test_flex_refuses_sinks() -> None:
    stream = build_stream(family())
    tensor = torch.zeros(1, 4, stream.num_tokens, WIDTH)
    with pytest.raises(ModelError, match="sinks"):
        flex(stream).attend(tensor, tensor, tensor, WITH_SINKS["sinks"])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_sequence_never_feels_its_neighbours(
    name: str, engine: Callable[..., LocalBackend], datum: Callable[..., Datum]
) -> None:
    """Every other token of one sequence is changed; the log-probabilities of the rest keep their bits."""
    backend = engine(name, micro_batch_tokens=10_000)
    draw = np.random.default_rng(0)
    sequences = [np.append(i + 1, draw.integers(1, 61, 12 + 3 * i)) for i in range(5)]

    def logprobs() -> list[bytes]:
        output = asyncio.run(backend.forward([datum(tokens) for tokens in sequences], CrossEntropy()))
        return [found.tobytes() for found in output.logprobs_D]

    assert len(list(backend._streams([datum(tokens) for tokens in sequences], LOSSES[CrossEntropy]))) == 1
    before = logprobs()
    for changed, tokens in enumerate(sequences):
        for place in range(1, tokens.size, 2):
            tokens[place] = tokens[place] % 60 + 1
        after = logprobs()
        assert [i for i in range(5) if after[i] != before[i]] == [changed]
        before = after
