"""What every sampling adapter keeps."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crucible_train.errors import ConfigError
from crucible_train.ports import NextTokenScorer, SamplingClient, TrainingClient
from crucible_train.ports.conforming import conforming
from crucible_train.types import AdamParams, CrossEntropy, Datum, ModelInput, SamplingParams, TensorData

KINDS: dict[str, Any] = {
    "lora": 2,
    "full": None,
    "vllm": "vllm_client",
    "sglang": "sglang_client",
    "llama.cpp": "llama_cpp_client",
    "tinker": "tinker_client",
}
PROMPT = ModelInput.from_ints(np.arange(50, 75))


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def client(request, local_client: Callable[..., TrainingClient]) -> SamplingClient:
    """A model that was trained a little, so that its adapter acts; or one behind a server."""
    if isinstance(request.param, str):
        return request.getfixturevalue(request.param)
    training = local_client(request.param)
    tokens = np.arange(100, 130)
    inputs = {"target_tokens": TensorData(tokens[1:], "int64"), "weights": TensorData(np.ones(29), "float32")}
    datum = Datum(ModelInput.from_ints(tokens[:-1]), inputs)

    async def train() -> None:
        for _ in range(3):
            await training.forward_backward([datum], CrossEntropy())
            await training.optim_step(AdamParams(learning_rate=0.05))

    asyncio.run(train())
    return conforming(training.sampling_client(), SamplingClient, "sampling client")


def sample(client: SamplingClient, params: SamplingParams, num: int = 1, prompt: ModelInput = PROMPT) -> list[Any]:
    return list(asyncio.run(client.sample(prompt, num, params)))


def last_logprobs(client: SamplingClient, prompt: ModelInput, tokens: list[int]) -> list[float]:
    """What the model gives each of some tokens after a prompt."""

    async def ask() -> list[Any]:
        return await asyncio.gather(*(client.compute_logprobs(prompt.append_ints([token])) for token in tokens))

    return [found[-1] for found in asyncio.run(ask())]


def test_temperature_zero_takes_the_most_likely_token(client: SamplingClient, request: pytest.FixtureRequest) -> None:
    (answer,) = sample(client, SamplingParams(5, temperature=0.0))
    num_others = 4 if "llama.cpp" in request.node.name else 40  # it is asked once a token
    others = np.random.default_rng(0).integers(0, 49152, num_others).tolist()
    for place, token in enumerate(answer.tokens):
        before = PROMPT.append_ints(answer.tokens[:place])
        best, *rest = last_logprobs(client, before, [token, *others])
        assert best >= max(rest) - 1e-5
        assert answer.logprobs[place] == pytest.approx(best, abs=1e-4)


def test_greedy_samples_are_all_the_same(client: SamplingClient) -> None:
    params = SamplingParams(8, temperature=0.0)
    answers = sample(client, params, 3)
    answers += sample(client, SamplingParams(8, temperature=0.0, seed=9))
    assert len({answer.tokens for answer in answers}) == 1


def test_seed_prompt_and_parameters_decide_whatever_else_is_written(client: SamplingClient) -> None:
    params = SamplingParams(6, temperature=1.3, top_p=0.95, seed=5)
    alone = sample(client, params, 2)

    async def crowded() -> Any:
        crowd = [
            client.sample(ModelInput.from_ints(np.arange(n + 1) + 7), n + 1, SamplingParams(9, seed=n))
            for n in range(4)
        ]
        found, *_ = await asyncio.gather(client.sample(PROMPT, 2, params), *crowd)
        return found

    assert [answer.tokens for answer in asyncio.run(crowded())] == [answer.tokens for answer in alone]
    assert alone[0].tokens != alone[1].tokens
    assert sample(client, SamplingParams(6, temperature=1.3, top_p=0.95, seed=6))[0].tokens != alone[0].tokens


def test_more_samples_begin_with_the_fewer(client: SamplingClient) -> None:
    params = SamplingParams(4, seed=8)
    assert [a.tokens for a in sample(client, params, 5)][:2] == [a.tokens for a in sample(client, params, 2)]


@pytest.mark.parametrize("values", [{}, {"temperature": 0.3}, {"temperature": 4.0}, {"top_p": 0.2}])
def test_log_probabilities_are_those_at_temperature_one(values: dict[str, float], client: SamplingClient) -> None:
    for answer in sample(client, SamplingParams(6, **values), 2):
        scored = asyncio.run(client.compute_logprobs(PROMPT.append_ints(answer.tokens)))
        np.testing.assert_allclose(answer.logprobs, scored[PROMPT.length :], atol=1e-4)


def test_filters_leave_the_most_likely_tokens(client: SamplingClient, request: pytest.FixtureRequest) -> None:
    (best,) = sample(client, SamplingParams(5, temperature=0.0))
    has_min_p = "tinker" not in request.node.name
    for values in ({"top_k": 1}, {"top_p": 1e-6}, *([{"min_p": 1.0}] if has_min_p else [])):
        assert sample(client, SamplingParams(5, temperature=2.0, seed=4, **values))[0].tokens == best.tokens
    (first,) = asyncio.run(client.top_logprobs(PROMPT.append_ints([0]), 3))[-1:]
    allowed = {token for token, _ in first}
    answers = sample(client, SamplingParams(1, temperature=30.0, top_k=3), 40)
    assert {answer.tokens[0] for answer in answers} == allowed
    if not has_min_p:
        with pytest.raises(ConfigError, match="min_p"):
            sample(client, SamplingParams(1, min_p=0.1))
        return
    between = float(np.exp(((first[1][1] + first[2][1]) / 2 - first[0][1]) / 30.0))
    answers = sample(client, SamplingParams(1, temperature=30.0, top_k=3, min_p=between), 40)
    assert {answer.tokens[0] for answer in answers} == {token for token, _ in first[:2]}


def test_the_most_likely_tokens_are_told_in_order(client: SamplingClient) -> None:
    (answer,) = sample(client, SamplingParams(4, temperature=0.0))
    whole = PROMPT.append_ints(answer.tokens)

    async def ask() -> Any:
        return await asyncio.gather(client.top_logprobs(whole, 5), client.top_logprobs(PROMPT, 2))

    found, shorter = asyncio.run(ask())
    assert found[0] is None
    assert len(found) == whole.length
    assert [pairs[0][0] for pairs in found[PROMPT.length :]] == list(answer.tokens)
    np.testing.assert_allclose([pairs[0][1] for pairs in found[PROMPT.length :]], answer.logprobs, atol=1e-4)
    for place in range(1, whole.length):
        scores = [score for _, score in found[place]]
        assert len({token for token, _ in found[place]}) == 5
        assert scores == sorted(scores, reverse=True)
        if place < PROMPT.length:
            assert [token for token, _ in shorter[place]] == [token for token, _ in found[place][:2]]
    token, logprob = found[-1][4]
    (scored,) = last_logprobs(client, PROMPT.append_ints(answer.tokens[:-1]), [token])
    assert scored == pytest.approx(logprob, abs=1e-4)
    assert asyncio.run(client.top_logprobs(ModelInput.from_ints([9]), 2)) == [None]
    with pytest.raises(ValueError, match="1 or more"):
        asyncio.run(client.top_logprobs(PROMPT, 0))


def test_sequences_scored_together_are_scored_as_alone(client: SamplingClient) -> None:
    many = [
        ModelInput.from_ints(np.arange(start, start + num) % 300) for start, num in ((5, 40), (5, 25), (9, 3), (50, 1))
    ]

    async def ask() -> Any:
        return await asyncio.gather(*(client.compute_logprobs(one) for one in many))

    for one, together in zip(many, asyncio.run(ask()), strict=True):
        alone = asyncio.run(client.compute_logprobs(one))
        assert together[0] is None
        np.testing.assert_allclose(together[1:], alone[1:], atol=1e-4)


def test_a_conversation_goes_on_as_if_read_afresh(client: SamplingClient) -> None:
    (answer,) = sample(client, SamplingParams(24, seed=2))
    after = PROMPT.append_ints([*answer.tokens, *range(7, 19)])
    (further,) = sample(client, SamplingParams(6, seed=5), prompt=after)
    scored = asyncio.run(client.compute_logprobs(after.append_ints(further.tokens)))
    np.testing.assert_allclose(further.logprobs, scored[after.length :], atol=1e-4)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llama.cpp"])
def test_a_next_token_is_scored_as_at_the_end_of_a_sequence(kind: str, request: pytest.FixtureRequest) -> None:
    client = request.getfixturevalue(KINDS[kind])
    assert isinstance(client, NextTokenScorer)
    found = asyncio.run(client.next_logprobs(PROMPT, [7, 300, 40_000]))
    np.testing.assert_allclose(found, last_logprobs(client, PROMPT, [7, 300, 40_000]), atol=1e-4)
    assert asyncio.run(client.next_logprobs(PROMPT, [])) == []


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"min_p": -0.1},
        {"seed": -1},
        {"seed": 2**63},
        {"stop_texts": ("a", "")},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        SamplingParams(**{"max_tokens": 3, **values})


def test_the_first_token_has_no_log_probability(client: SamplingClient) -> None:
    first, *others = asyncio.run(client.compute_logprobs(PROMPT))
    assert first is None
    assert len(others) == PROMPT.length - 1
    assert max(others) < 0
    assert asyncio.run(client.compute_logprobs(ModelInput.from_ints([9]))) == [None]


def test_nothing_follows_a_stop_token(client: SamplingClient) -> None:
    (free,) = sample(client, SamplingParams(8, seed=1))
    assert free.stop_reason == "length"
    stop = free.tokens[4]
    (answer,) = sample(client, SamplingParams(8, seed=1, stop_token_ids=(stop,)))
    assert answer.tokens == free.tokens[: free.tokens.index(stop) + 1]
    assert answer.stop_reason == "stop"


def test_nothing_follows_a_stop_text(client: SamplingClient) -> None:
    (free,) = sample(client, SamplingParams(8, seed=1))
    tokenizer = client.tokenizer()  # type: ignore[attr-defined]
    wanted = tokenizer.decode(free.tokens[3:5])
    (answer,) = sample(client, SamplingParams(8, seed=1, stop_texts=(wanted,)))
    assert answer.tokens == free.tokens[:5]
    assert answer.stop_reason == "stop"


def test_no_samples_are_none(client: SamplingClient) -> None:
    assert sample(client, SamplingParams(3), 0) == []


def test_a_request_that_fails_does_not_hang(client: SamplingClient) -> None:
    with pytest.raises(Exception, match=r"index|range"):
        asyncio.run(asyncio.wait_for(client.sample(ModelInput.from_ints([60000]), 1, SamplingParams(2)), 20))
    assert len(sample(client, SamplingParams(2))[0].tokens) == 2


def test_a_caller_that_leaves_does_not_disturb_the_others(client: SamplingClient) -> None:
    params = SamplingParams(6, seed=3)
    expected = [answer.tokens for answer in sample(client, params, 2)]

    async def act() -> Any:
        staying = asyncio.create_task(client.sample(PROMPT, 2, params))
        leaving = asyncio.create_task(client.sample(PROMPT, 2, SamplingParams(40)))
        await asyncio.sleep(0)
        leaving.cancel()
        return [answer.tokens for answer in await asyncio.wait_for(staying, 30)]

    assert asyncio.run(act()) == expected
