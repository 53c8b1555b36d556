"""Real servers on the tiny model, beside the engine and transformers on the same weights."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crucible_train.adapters.openai_compatible.answers import NativeToken
from crucible_train.adapters.openai_compatible.llama_cpp import aligned
from crucible_train.adapters.openai_compatible.sampler import OpenAICompatibleSampler
from crucible_train.config.server import ServerConfig
from crucible_train.errors import ConfigError, InputError, ServerError
from crucible_train.ports import Tokenizer
from crucible_train.types import ModelInput, SamplingParams
from tests.model_servers.llama_cpp import llama_cpp

EOS = 2


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def llama_address(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("xllamacpp", reason="install the extra `servers`")
    with llama_cpp(tiny_model, tmp_path_factory.mktemp("gguf")) as url:
        yield url


@pytest.fixture(scope="module")
def transformers_address(tiny_model: Path) -> Iterator[str]:
    """`transformers serve` in a thread, as its own tests start it."""
    import socket

    pytest.importorskip("openai", reason="install the extra `servers`")
    from huggingface_hub import constants
    from transformers.cli.serve import Serve
    from transformers.utils import logging

    Path(constants.HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)  # without it the list of models is a failure
    level = logging.get_verbosity()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = Serve(
        str(tiny_model),
        port=port,
        host="127.0.0.1",
        device="cpu",
        dtype="float32",
        log_level="error",
        non_blocking=True,
    )
    deadline = time.monotonic() + 60
    while not serve.server.started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    serve.server.should_exit = True
    serve._thread.join(20)
    serve.reset_loaded_models()
    logging.set_verbosity(level)
    assert serve._thread not in threading.enumerate()


def client_of(url: str, tokenizer: Tokenizer, **fields: Any) -> OpenAICompatibleSampler:
    return OpenAICompatibleSampler(ServerConfig(base_url=url, **fields), tokenizer, lambda _: None)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def test_llama_cpp_gives_the_log_probabilities_of_the_weights(
    llama_address: str, tokenizer: Tokenizer, model: Any
) -> None:
    client = client_of(llama_address, tokenizer)
    prompt = [504, 1, 2, 4093, 300, 17]
    (answer,) = asyncio.run(client.sample(ModelInput.from_ints(prompt), 1, SamplingParams(8, 1.4, 0.9, seed=2)))
    whole = [*prompt, *answer.tokens]
    expected = logits(model, whole).log_softmax(-1)[:-1].gather(1, torch.tensor(whole[1:])[:, None])[:, 0].numpy()
    np.testing.assert_allclose(answer.logprobs, expected[-8:], atol=2e-3)
    found = asyncio.run(client.compute_logprobs(ModelInput.from_ints(whole)))
    np.testing.assert_allclose(found[1:], expected, atol=2e-3)


def test_llama_cpp_tells_of_tokens_that_end_within_a_character(
    llama_address: str, tokenizer: Tokenizer, model: Any
) -> None:
    halves = [i for i in range(200, 45000) if tokenizer.decode([i]).endswith("\N{REPLACEMENT CHARACTER}")][:2]
    assert len(halves) == 2
    ids = [504, 300, halves[0], 17, halves[1]]
    found = asyncio.run(client_of(llama_address, tokenizer).compute_logprobs(ModelInput.from_ints(ids)))
    expected = logits(model, ids).log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    np.testing.assert_allclose(found[1:], expected, atol=2e-3)


def test_llama_cpp_tells_the_most_likely_tokens_of_the_weights(
    llama_address: str, tokenizer: Tokenizer, model: Any
) -> None:
    ids = [504, 300, 2, 1, 7]
    found = asyncio.run(client_of(llama_address, tokenizer).top_logprobs(ModelInput.from_ints(ids), 3))
    expected = logits(model, ids).log_softmax(-1)[:-1].topk(3)
    assert [[token for token, _ in row] for row in found[1:]] == expected.indices.tolist()
    np.testing.assert_allclose([[score for _, score in row] for row in found[1:]], expected.values, atol=2e-3)


@pytest.mark.parametrize(
    ("params", "keeps"),
    [
        (SamplingParams(1, temperature=0.02, top_k=3), 3),
        (SamplingParams(1, temperature=0.004, top_p=0.9), None),
        (SamplingParams(1, temperature=0.01, min_p=0.3), None),
    ],
    ids=["top_k", "top_p", "min_p"],
)
def test_llama_cpp_filters_after_the_temperature(
    llama_address: str, tokenizer: Tokenizer, model: Any, params: SamplingParams, keeps: int | None
) -> None:
    prompt = [504, 300, 40]
    answers = asyncio.run(client_of(llama_address, tokenizer).sample(ModelInput.from_ints(prompt), 60, params))
    probabilities, order = (logits(model, prompt)[-1] / params.temperature).softmax(-1).sort(descending=True)
    if keeps is None:
        if params.min_p:
            keeps = int((probabilities >= params.min_p * probabilities[0]).sum())
        else:
            keeps = int((probabilities.cumsum(0) - probabilities < params.top_p).sum())
    drawn = {answer.tokens[0] for answer in answers}
    assert drawn <= set(order[:keeps].tolist())
    assert len(drawn) > 1
    assert keeps < 200


def test_llama_cpp_cuts_after_a_stop(llama_address: str, tokenizer: Tokenizer) -> None:
    client, prompt = client_of(llama_address, tokenizer), ModelInput.from_ints([504, 300, 17])
    (free,) = asyncio.run(client.sample(prompt, 1, SamplingParams(8, seed=1)))
    (answer,) = asyncio.run(client.sample(prompt, 1, SamplingParams(8, seed=1, stop_token_ids=(free.tokens[3],))))
    assert (answer.tokens, answer.stop_reason) == (free.tokens[:4], "stop")


def test_what_was_told_of_tokens_is_put_where_it_must_belong() -> None:
    def told(*ids: int) -> list[NativeToken]:
        return [NativeToken(id=token, logprob=-float(place)) for place, token in enumerate(ids, 1)]

    assert aligned([5, 6, 7], told(5, 6, 7)) == [-1, -2, -3]
    assert aligned([5, 9, 7], told(5, 7)) == [-1, None, -2]
    assert aligned([5, 5, 7], told(5, 7)) == [None, None, -2]  # which 5 it was cannot be known
    with pytest.raises(ServerError, match="token 8, which it did not write"):
        aligned([5, 6], told(8))


def test_transformers_serve_is_no_use_for_training_and_says_so(
    transformers_address: str, tokenizer: Tokenizer, tiny_model: Path
) -> None:
    client = client_of(transformers_address, tokenizer, model=str(tiny_model))
    with pytest.raises(ConfigError, match="returns text without token ids or log-probabilities"):
        asyncio.run(client.sample(ModelInput.from_ints([504]), 1, SamplingParams(2)))


def test_transformers_serve_answers_as_transformers_does(
    transformers_address: str, tokenizer: Tokenizer, tiny_model: Path, model: Any
) -> None:
    client = client_of(transformers_address, tokenizer, model=str(tiny_model), text_answers="any")
    prompt = [1, *tokenizer.encode("user\nHi"), 2, *tokenizer.encode("\n")]
    params = SamplingParams(6, temperature=0.0, stop_token_ids=(EOS,))
    (answer,) = asyncio.run(client.sample(ModelInput.from_ints(prompt), 1, params))
    written = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=EOS)[0]
    assert tokenizer.decode(answer.tokens) == tokenizer.decode(written[len(prompt) :].tolist())
    assert (answer.logprobs, answer.stop_reason) == (None, "length")
    with pytest.raises(ConfigError, match="transformers gives no log-probabilities of a prompt"):
        asyncio.run(client.compute_logprobs(ModelInput.from_ints(prompt)))
    with pytest.raises(ConfigError, match="transformers gives no log-probabilities of a prompt"):
        asyncio.run(client.top_logprobs(ModelInput.from_ints(prompt), 2))


def test_transformers_serve_keeps_seeds_and_refuses_what_it_cannot_do(
    transformers_address: str, tokenizer: Tokenizer, tiny_model: Path
) -> None:
    client = client_of(transformers_address, tokenizer, model=str(tiny_model), text_answers="any")
    prompt = ModelInput.from_ints([1, *tokenizer.encode("user\nHi"), 2])
    params = SamplingParams(6, temperature=1.2, top_k=900, top_p=0.9, seed=5, stop_token_ids=(EOS,))

    async def twice() -> Any:
        return await asyncio.gather(client.sample(prompt, 2, params), client.sample(prompt, 2, params))

    first, second = asyncio.run(twice())
    assert [answer.tokens for answer in first] == [answer.tokens for answer in second]
    assert first[0].tokens != first[1].tokens
    with pytest.raises(ConfigError, match="stop_token_ids: transformers serve stops at its own end token"):
        asyncio.run(client.sample(prompt, 1, SamplingParams(2)))
    spelt = ModelInput.from_ints([int(token) for token in tokenizer.encode("a <|im_end|> in a text")])
    with pytest.raises(InputError, match="cannot be sent as text"):
        asyncio.run(client.sample(spelt, 1, params))


def test_transformers_serve_stops_at_a_text_and_at_a_control_token(
    transformers_address: str, tokenizer: Tokenizer, tiny_model: Path
) -> None:
    client = client_of(transformers_address, tokenizer, model=str(tiny_model), text_answers="any")
    prompt = ModelInput.from_ints([1, *tokenizer.encode("user\nHi"), 2])
    free_params = SamplingParams(8, temperature=1.0, seed=1, stop_token_ids=(EOS,))
    (free,) = asyncio.run(client.sample(prompt, 1, free_params))
    wanted = tokenizer.decode(free.tokens)[5:9]
    params = SamplingParams(8, temperature=1.0, seed=1, stop_token_ids=(EOS,), stop_texts=(wanted,))
    (answer,) = asyncio.run(client.sample(prompt, 1, params))
    assert answer.stop_reason == "stop"
    assert wanted in tokenizer.decode(answer.tokens)
    assert free.tokens[: len(answer.tokens)] == answer.tokens
