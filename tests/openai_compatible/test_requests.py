"""What is put to a server, value for value, and what of its answer is believed."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crucible_train.adapters.openai_compatible.sampler import OpenAICompatibleSampler
from crucible_train.errors import ConfigError, InputError, ServerError
from crucible_train.types import EncodedTextChunk, ImageChunk, ModelInput, SamplingParams
from tests.model_servers.stub import EOS, StubServer, kept, toy_logprobs

PROMPT = ModelInput.from_ints([504, 2, 1, 300])
Make = Callable[..., OpenAICompatibleSampler]


def sample(client: OpenAICompatibleSampler, params: SamplingParams, num: int = 1) -> list[Any]:
    return list(asyncio.run(client.sample(PROMPT, num, params)))


def test_every_value_reaches_vllm(make_client: Make, stub: StubServer) -> None:
    params = SamplingParams(5, 0.7, 0.9, seed=4, stop_token_ids=(7, 9), stop_texts=("END",), top_k=12, min_p=0.05)
    assert len(sample(make_client(), params, 3)) == 3
    sent = stub.requests[-1]
    assert 0 <= sent.pop("seed") < 2**31
    assert sent == {
        "model": "toy",
        "prompt": [504, 2, 1, 300],
        "n": 3,
        "max_tokens": 5,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 12,
        "min_p": 0.05,
        "stop": ["END"],
        "stop_token_ids": [7, 9],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "add_special_tokens": False,
        "return_token_ids": True,
        "logprobs": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stream": False,
    }


def test_every_value_reaches_sglang(make_client: Make, stub: StubServer) -> None:
    stub.kind, stub.models = "sglang", [{"id": "toy", "owned_by": "sglang"}]
    assert len(sample(make_client(), SamplingParams(5, 0.7, 0.9, stop_texts=("END",), min_p=0.05), 3)) == 3
    first, *_, last = stub.requests[-3:]
    assert first["seed"] != last["seed"]
    assert (last["top_k"], last["min_p"], last["stop"], last["no_stop_trim"]) == (-1, 0.05, ["END"], True)
    assert last["ignore_eos"]
    assert "n" not in last
    sample(make_client(), SamplingParams(2, stop_token_ids=(7,)))
    assert (stub.requests[-1]["ignore_eos"], stub.requests[-1]["stop_token_ids"]) == (False, [7])


def test_neighbouring_seeds_share_no_sample(make_client: Make) -> None:
    client = make_client()
    samples = [each.tokens for seed in range(3) for each in sample(client, SamplingParams(4, seed=seed), 3)]
    assert len(set(samples)) == 9


@pytest.mark.parametrize("values", [{"top_k": 3}, {"min_p": 0.5}, {"top_p": 0.3}])
def test_filters_act(make_client: Make, stub: StubServer, values: dict[str, Any]) -> None:
    params = SamplingParams(1, temperature=1.5, **values)
    drawn = {answer.tokens[0] for answer in sample(make_client(), params, 60)}
    scores = kept(toy_logprobs(PROMPT.to_ints(), stub.vocab_size), stub.requests[-1])
    assert drawn <= set(np.flatnonzero(np.isfinite(scores)).tolist())
    assert len(drawn) > 1


def test_the_end_token_is_a_token_like_others_unless_asked_for(make_client: Make, stub: StubServer) -> None:
    sample(make_client(), SamplingParams(3))
    assert (stub.requests[-1]["ignore_eos"], stub.requests[-1]["stop_token_ids"]) == (True, [])
    sample(make_client(), SamplingParams(3, stop_token_ids=(EOS,)))
    assert (stub.requests[-1]["ignore_eos"], stub.requests[-1]["stop_token_ids"]) == (True, [EOS])


def test_the_server_is_asked_once_what_it_is_and_that_is_told(make_client: Make, told: Any, stub: StubServer) -> None:
    client = make_client()
    sample(client, SamplingParams(2))
    sample(client, SamplingParams(2))
    assert told.lines == ["toy at vllm: token ids with log-probabilities; prompts are scored in one request"]
    assert [body["max_tokens"] for body in stub.requests] == [1, 1, 2, 2]


def test_one_model_of_several_must_be_named(make_client: Make, stub: StubServer) -> None:
    stub.models = [{"id": "toy", "owned_by": "vllm"}, {"id": "other", "owned_by": "vllm"}]
    with pytest.raises(ConfigError, match=r"model: the server does not serve exactly one.*lists toy, other"):
        sample(make_client(), SamplingParams(2))
    assert len(sample(make_client(model="toy"), SamplingParams(2))) == 1


def test_a_model_that_is_not_there_is_told_in_the_servers_words(make_client: Make) -> None:
    with pytest.raises(ServerError, match=r"status 404: The model `absent` does not exist"):
        sample(make_client(model="absent"), SamplingParams(2))


def test_a_server_of_unknown_kind_must_be_named(make_client: Make, stub: StubServer) -> None:
    stub.models = [{"id": "toy", "owned_by": "someone"}]
    with pytest.raises(ConfigError, match=r"name its kind: vllm, sglang, llama\.cpp, transformers"):
        sample(make_client(), SamplingParams(2))
    assert len(sample(make_client(server="vllm"), SamplingParams(2))) == 1


def test_a_server_too_old_for_ids_is_refused(make_client: Make, stub: StubServer) -> None:
    stub.returns_ids = False
    with pytest.raises(ServerError, match="vllm returned no token ids"):
        sample(make_client(), SamplingParams(2))


def test_log_probabilities_after_temperature_are_refused_where_they_differ(
    make_client: Make, stub: StubServer, told: Any
) -> None:
    stub.is_processed = True
    client = make_client()
    (answer,) = sample(client, SamplingParams(2))
    context = PROMPT.to_ints()
    assert answer.logprobs[0] == pytest.approx(toy_logprobs(context, stub.vocab_size)[answer.tokens[0]], abs=1e-9)
    assert told.lines[0].endswith("its log-probabilities are the model's own at temperature 1 only")
    for params in (SamplingParams(2, temperature=0.5), SamplingParams(2, top_p=0.9), SamplingParams(2, top_k=5)):
        with pytest.raises(ConfigError, match="log-probabilities after temperature and filters"):
            sample(client, params)


def test_what_cannot_be_put_exactly_is_refused(make_client: Make, tokenizer: Any) -> None:
    client = make_client()
    with pytest.raises(ConfigError, match=r"temperature: vllm takes 0, or 0.01 and more, not 0.001"):
        sample(client, SamplingParams(2, temperature=0.001))
    image = ModelInput((EncodedTextChunk([1]), ImageChunk(b"", "png", 3, 5)))
    for prompt, message in ((image, "images"), (ModelInput.empty(), "at least one token")):
        with pytest.raises(InputError, match=message):
            asyncio.run(client.sample(prompt, 1, SamplingParams(2)))
    with pytest.raises(InputError, match="out of range"):
        asyncio.run(client.compute_logprobs(ModelInput.from_ints([1, tokenizer.vocab_size])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finish_reason": "abort"}, "did not finish an answer: abort"),
        ({"finish_reason": "stop"}, "stopped at token .*, which no stop token or text asks for"),
        ({"token_ids": [1, 2, 3]}, "3 tokens but 4 log-probabilities"),
        ({"logprobs": None}, "4 tokens but 0 log-probabilities"),
        ({"token_ids": [1, 2, 3, 60000]}, "a token that .* does not have: is it the same model"),
        ({"index": 1}, "1 samples where 1 were asked for"),
        ({"text": None}, r"completion cannot be read: choices\.0\.text"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(
    make_client: Make, stub: StubServer, change: dict[str, Any], message: str
) -> None:
    stub.edit = lambda answer: answer | {"choices": [answer["choices"][0] | change]}
    with pytest.raises(ServerError, match=message):
        sample(make_client(), SamplingParams(4))
    assert stub.tries == 3  # two to see what the server is, and one: another would not mend it


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_fewer_likely_tokens_than_were_asked_for_are_refused(make_client: Make, stub: StubServer, kind: str) -> None:
    stub.kind, stub.models, stub.most_told = kind, [{"id": "toy", "owned_by": kind}], 2
    assert len(asyncio.run(make_client().top_logprobs(PROMPT, 2))) == PROMPT.length
    with pytest.raises(ServerError, match=f"{kind} did not give the 4 most likely tokens at every position"):
        asyncio.run(make_client().top_logprobs(PROMPT, 4))


def test_an_answer_whose_count_is_another_is_refused(make_client: Make, stub: StubServer) -> None:
    stub.edit = lambda answer: answer | {"usage": answer["usage"] | {"completion_tokens": 7}}
    with pytest.raises(ServerError, match="vllm counts 7 tokens but returned 4 ids"):
        sample(make_client(), SamplingParams(4))


def test_requests_under_way_are_bounded(make_client: Make, stub: StubServer) -> None:
    stub.models = [{"id": "toy", "owned_by": "sglang"}]
    sample(make_client(max_concurrency=2), SamplingParams(2), 12)
    assert stub.most_under_way <= 2
