"""Drawing tokens: filters against sorted lists, draws against the distribution, ties, extremes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.adapters.torch_local.choosing import Choices, Logits, pick
from crucible_train.adapters.torch_local.loss_head import Head
from crucible_train.errors import ModelError
from crucible_train.types import SamplingParams

CPU = torch.device("cpu")


def kept(logits_V: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Which tokens the filters keep, by sorted lists."""
    scores = (logits_V - logits_V.max()).div(params.temperature).double()
    is_kept = torch.ones(len(scores), dtype=torch.bool)
    if 0 < params.top_k < len(scores):
        is_kept &= scores >= scores.sort(descending=True).values[params.top_k - 1]
    if params.top_p < 1:
        ordered = scores.masked_fill(~is_kept, float("-inf")).sort(descending=True).values
        before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
        is_kept &= scores >= ordered[int((before < params.top_p).sum()) - 1]
    if params.min_p > 0:
        is_kept &= scores.exp() >= params.min_p * (1 - 1e-6)
    return is_kept


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.31, 1e-6]),
    top_k=st.sampled_from([0, 1, 4, 40, 5000]),
    min_p=st.sampled_from([0.0, 0.03, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(PARAMS, min_size=1, max_size=7),
    st.sampled_from([5, 61, 256, 700]),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_filters_keep_what_sorted_lists_keep(
    params: list[SamplingParams], vocab: int, seed: int, dtype: torch.dtype
) -> None:
    """In bfloat16 many tokens tie; whatever else stands in the batch, a row's choice is its own."""
    draw = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(params), vocab, generator=draw) * 2).to(dtype).float()
    uniform = torch.rand(len(params), generator=draw, dtype=torch.float64)
    tokens, logprobs = Choices.of(params, CPU).draw(logits.clone(), uniform)
    expected = torch.log_softmax(logits, dim=1)
    for row, one in enumerate(params):
        assert logprobs[row] == pytest.approx(float(expected[row, tokens[row]]), abs=1e-5)
        if one.temperature == 0:
            assert tokens[row] == int(logits[row].argmax())
            continue
        is_kept = kept(logits[row], one)
        assert is_kept[tokens[row]]
        weights = (logits[row].double() / one.temperature).softmax(0) * is_kept
        cumulated = weights.cumsum(0) / weights.sum()
        low, high = cumulated[tokens[row]] - weights[tokens[row]] / weights.sum(), cumulated[tokens[row]]
        assert low - 1e-5 <= uniform[row] <= high + 1e-5
        alone, _ = Choices.of([one], CPU).draw(logits[row : row + 1].clone(), uniform[row : row + 1])
        assert alone == [tokens[row]]


def test_draws_have_their_shares() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 5.0, *[0.0] * 300, 2.0, 0.0])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = np.bincount(pick(weights.expand(1000, -1), uniform), minlength=len(weights))
    assert counts.tolist() == [int(weight * 100) for weight in weights]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("vocab", [3, 256, 257, 1000])
def test_what_has_no_weight_is_never_drawn(uniform: float, vocab: int) -> None:
    weights = torch.zeros(vocab)
    weights[1] = 1e-30
    assert pick(weights[None], torch.tensor([uniform], dtype=torch.float64)).tolist() == [1]


def test_an_unlikely_token_has_a_log_probability() -> None:
    """Its weight at temperature 1 is too small for a float32."""
    logits = torch.tensor([[0.0, -300.0]])
    tokens, logprobs = Choices.of([SamplingParams(1, temperature=1000.0)], CPU).draw(
        logits, torch.tensor([0.99], dtype=torch.float64)
    )
    assert (tokens, logprobs) == ([1], [-300.0])


def test_logits_that_are_no_numbers_are_told() -> None:
    with pytest.raises(ModelError, match="not finite"):
        Choices.of([SamplingParams(1)], CPU).draw(torch.tensor([[0.0, float("nan")]]), torch.zeros(1).double())


def test_logits_are_bent_as_the_model_does() -> None:
    weight = torch.randn(7, 4)
    head = Head(weight, weight, torch.randn(7), scale=0.5, softcap=2.0)
    logits, hidden = Logits(head), torch.randn(3, 4)
    expected = torch.tanh((hidden @ weight.T + head.bias) * 0.5 / 2) * 2
    torch.testing.assert_close(logits.of(hidden), expected)
    torch.testing.assert_close(logits.of(hidden[:2]), expected[:2])
