"""Whatever the sequences: each scored position stands in the streams once, and sequences read back along parents."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.adapters.torch_local.stream import (
    MIN_SHARED_TOKENS,
    NO_PARENT,
    Scored,
    TokenStream,
    build_stream,
    micro_batches,
    scored,
)
from crucible_train.losses import LOSSES
from crucible_train.types import CrossEntropy, Datum, ModelInput, TensorData

CROSS_ENTROPY = LOSSES[CrossEntropy]
QUICK = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def item_lists(draw: st.DrawFn) -> list[Scored]:
    """Up to twelve sequences; each may begin as an earlier one does, or be its beginning, or the same again."""
    known: list[list[int]] = []
    items = []
    for index in range(draw(st.integers(0, 12))):
        tokens: list[int] = []
        if known and draw(st.booleans()):
            tokens = draw(st.sampled_from(known))
            tokens = tokens[: draw(st.integers(0, len(tokens)))]
        fresh = draw(st.integers(0, 40))
        seed = draw(st.integers(0, 2**16))
        tokens = tokens + np.random.default_rng(seed).integers(0, 3, fresh).tolist()
        known.append(tokens)
        chosen = np.array(sorted(draw(st.sets(st.integers(0, max(0, len(tokens) - 1)), max_size=6))), np.int64)
        places = np.append(chosen[chosen < len(tokens) - 1], len(tokens) - 1) if tokens else chosen[:0]
        targets = (places * 7 + index) % 50
        items.append(Scored(index, np.array(tokens, np.int64), places, targets, places.astype(np.float32) + 1))
    return items


def read_back(stream: TokenStream, row: int) -> list[int]:
    """The tokens up to a position of the stream, along the parents of its segment."""
    index = next(i for i, segment in enumerate(stream.segments) if segment.start <= row < segment.end)
    end, parts = row + 1, []
    while index != NO_PARENT:
        segment = stream.segments[index]
        parts.append(stream.tokens_T[segment.start : end].tolist())
        assert segment.parent < index
        if segment.parent != NO_PARENT:
            end = stream.segments[segment.parent].end
            assert segment.offset == stream.segments[segment.parent].offset + len(stream.segments[segment.parent])
        else:
            assert segment.offset == 0
        index = segment.parent
    return [token for part in reversed(parts) for token in part]


def assert_whole(stream: TokenStream) -> None:
    """Segments tile the stream: no padding and no overlap."""
    assert [s.start for s in stream.segments] == [0, *(s.end for s in stream.segments[:-1])][: len(stream.segments)]
    assert stream.num_tokens == sum(len(segment) for segment in stream.segments) == stream.positions_T.size
    assert all(len(segment) > 0 for segment in stream.segments)


def assert_scores(streams: Sequence[TokenStream], items: Sequence[Scored]) -> None:
    """Every scored position once, with its target and weight, where the sequence up to it reads back."""
    found = {}
    tokens = {item.index: item.tokens_N.tolist() for item in items}
    for stream in streams:
        assert_whole(stream)
        columns = (stream.datum_S, stream.place_S, stream.rows_S, stream.targets_S, stream.weights_S)
        for datum, place, row, target, weight in zip(*columns, strict=True):
            assert (datum, place) not in found
            found[datum, place] = (target, weight)
            assert read_back(stream, row) == tokens[datum][: place + 1]
            assert stream.positions_T[row] == place
    expected = {
        (item.index, place): (target, weight)
        for item in items
        for place, target, weight in zip(item.places_S, item.targets_S, item.weights_S, strict=True)
    }
    assert found == expected


@given(item_lists(), st.booleans())
@QUICK
def test_one_stream_holds_every_sequence_and_no_more(items: list[Scored], share: bool) -> None:
    items = [item for item in items if item.tokens_N.size]
    if not items:
        return
    stream = build_stream(items, share=share)
    assert_scores([stream], items)
    total = sum(item.tokens_N.size for item in items)
    assert stream.num_tokens <= total
    if not share:
        assert stream.num_tokens == total


@given(item_lists(), st.integers(1, 150), st.booleans())
@QUICK
def test_streams_keep_the_budget(items: list[Scored], max_tokens: int, share: bool) -> None:
    streams = micro_batches(items, max_tokens, share=share)
    assert_scores(streams, items)
    assert sum(s.num_tokens for s in streams) <= sum(item.tokens_N.size for item in items)
    for stream in streams:
        assert stream.num_tokens <= max_tokens or len(np.unique(stream.datum_S)) == 1


@given(item_lists())
@QUICK
def test_without_a_budget_every_sequence_stands_alone(items: list[Scored]) -> None:
    streams = micro_batches(items, 0, share=False)
    assert_scores(streams, items)
    assert len(streams) == sum(item.tokens_N.size > 0 for item in items)


def whole(index: int, *parts: np.ndarray) -> Scored:
    tokens = np.concatenate(parts).astype(np.int64)
    return Scored(index, tokens, np.arange(tokens.size), tokens, np.ones(tokens.size, np.float32))


@pytest.mark.parametrize("num_shared", [MIN_SHARED_TOKENS - 1, MIN_SHARED_TOKENS, 40])
def test_a_prefix_is_computed_once_from_sixteen_tokens_on(num_shared: int) -> None:
    shared = np.arange(num_shared) + 10
    items = [whole(i, shared, np.full(5, i)) for i in range(4)]
    saved = 3 * num_shared if num_shared >= MIN_SHARED_TOKENS else 0
    assert build_stream(items).num_tokens == 4 * (num_shared + 5) - saved


def test_prefixes_nest() -> None:
    system, question = np.arange(20), np.arange(30) + 100
    items = [whole(i, system, question, np.full(4, i)) for i in (1, 2)] + [whole(0, system, np.full(3, 50))]
    stream = build_stream(items)
    assert stream.num_tokens == 20 + 30 + 2 * 4 + 3
    depths = [
        0 if s.parent == NO_PARENT else 1 + (stream.segments[s.parent].parent != NO_PARENT) for s in stream.segments
    ]
    assert sorted(depths) == [0, 1, 1, 2, 2]


def test_a_budget_counts_what_is_really_shared() -> None:
    """30 tokens are shared by two and 20 by all three: the ten between are too few to be a segment of their own."""
    beginning = np.arange(30)
    items = [whole(0, beginning, [97] * 5), whole(1, beginning, [98] * 5), whole(2, beginning[:20], [99] * 5)]
    assert build_stream(items).num_tokens == 20 + 15 + 15 + 5
    assert max(stream.num_tokens for stream in micro_batches(items, 50)) <= 50
    assert len(micro_batches(items, 55)) == 1


def group(first_index: int, num_prompt: int, *answers: int) -> list[Scored]:
    """Sequences of one prompt, which no other group shares, with answers of these lengths."""
    prompt = np.full(num_prompt, 100 + first_index)
    return [whole(first_index + i, prompt, np.full(num, 1000 + first_index + i)) for i, num in enumerate(answers)]


def test_groups_are_cut_where_their_prompts_are_not_computed_again() -> None:
    items = group(0, 500, *[30] * 8) + group(8, 250, *[30] * 8)
    assert [stream.num_tokens for stream in micro_batches(items, 768)] == [500 + 8 * 30, 250 + 8 * 30]


def test_a_group_that_is_too_long_has_its_prompt_computed_as_often_as_it_must() -> None:
    items = group(0, 100, *[20] * 10)
    assert [stream.num_tokens for stream in micro_batches(items, 200)] == [200, 200]


@given(st.lists(st.tuples(st.integers(16, 60), st.integers(1, 3), st.integers(1, 30)), min_size=1, max_size=2))
@QUICK
def test_no_other_cut_computes_less(sizes: list[tuple[int, int, int]]) -> None:
    items = [one for i, (prompt, num, answer) in enumerate(sizes) for one in group(8 * i, prompt, *[answer] * num)]
    budget = 100
    found = micro_batches(items, budget)
    least = (10**6, 0)
    for marks in itertools.product([False, True], repeat=len(items) - 1):
        cuts = [0, *(place + 1 for place, is_cut in enumerate(marks) if is_cut), len(items)]
        streams = [build_stream(items[start:end]).num_tokens for start, end in itertools.pairwise(cuts)]
        if max(streams) <= budget:
            least = min(least, (sum(streams), len(streams)))
    assert (sum(stream.num_tokens for stream in found), len(found)) == least


def test_streams_without_common_prefixes_are_few_and_about_equally_long() -> None:
    items = [whole(i, np.full(10, 10 * i)) for i in range(12)]
    assert [stream.num_tokens for stream in micro_batches(items, 50)] == [40, 40, 40]


def test_streams_are_the_same_whatever_the_order_of_the_sequences() -> None:
    draw = np.random.default_rng(0)
    items = [whole(i, draw.integers(0, 9, int(draw.integers(5, 60)))) for i in range(15)]
    forward, backward = micro_batches(items, 120), micro_batches(items[::-1], 120)
    assert [s.tokens_T.tolist() for s in forward] == [s.tokens_T.tolist() for s in backward]


def test_nothing_after_the_last_weight_is_computed() -> None:
    tokens, weights = np.arange(10), np.zeros(10, np.float32)
    weights[[2, 5]] = 0.5, -1.5
    item = scored(3, make_datum(tokens, tokens + 1, weights), CROSS_ENTROPY)
    assert item.tokens_N.tolist() == [0, 1, 2, 3, 4, 5]
    assert item.places_S.tolist() == [2, 5]
    assert item.targets_S.tolist() == [3, 6]
    assert item.weights_S.tolist() == [0.5, -1.5]
    assert micro_batches([scored(0, make_datum(tokens, tokens, np.zeros(10)), CROSS_ENTROPY)], 100) == []


def make_datum(tokens: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Datum:
    inputs = {"target_tokens": TensorData(targets, "int64"), "weights": TensorData(weights, "float32")}
    return Datum(ModelInput.from_ints(tokens), inputs)


@pytest.mark.parametrize("missing", ["target_tokens", "weights"])
def test_a_datum_that_lacks_an_input_is_named(missing: str) -> None:
    datum = make_datum(np.arange(4), np.arange(4), np.ones(4))
    partial = Datum(datum.model_input, {k: v for k, v in datum.loss_fn_inputs.items() if k != missing})
    with pytest.raises(ValueError, match=f"datum 7 has no '{missing}'"):
        scored(7, partial, CROSS_ENTROPY)
