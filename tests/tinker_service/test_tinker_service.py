"""The Tinker service behind the sampling port, through its real SDK: what is asked, believed and told."""

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest

from crucible_train import wiring
from crucible_train.config.tinker import KEY_VARIABLE, TinkerConfig
from crucible_train.errors import ConfigError, ServerError
from crucible_train.ports import SamplingClient, Tokenizer
from crucible_train.renderers import FastTokenizer
from crucible_train.types import ModelInput, SamplingParams
from tests.model_servers.tinker_stub import BASE, SAVED, TinkerStub

PROMPT = ModelInput.from_ints([504, 2, 1, 300])
Run = Callable[..., Any]


async def nothing(_client: SamplingClient) -> None: ...


def sampling(params: SamplingParams, num: int = 1) -> Callable[[SamplingClient], Any]:
    return lambda client: client.sample(PROMPT, num, params)


async def scoring(client: SamplingClient) -> Any:
    return await client.compute_logprobs(PROMPT)


def test_every_value_reaches_the_service(in_session: Run, stub: TinkerStub) -> None:
    params = SamplingParams(5, 0.7, 0.9, seed=4, stop_token_ids=(7, 9), top_k=12)
    assert len(in_session(sampling(params, 2))) == 2
    samples = [asked for asked in stub.asked if not asked.get("prompt_logprobs")]
    sent = [asked["sampling_params"] for asked in samples]
    assert len({one.pop("seed") for one in sent}) == 2
    wanted = {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 12, "stop": [7, 9]}
    assert sent == [wanted, wanted]
    assert samples[0]["prompt"]["chunks"][0]["tokens"] == PROMPT.to_ints()
    assert samples[0]["num_samples"] == 1


def test_saved_weights_are_sampled_by_their_path(in_session: Run, told: list[str]) -> None:
    (answer,) = in_session(sampling(SamplingParams(3)), model=SAVED)
    assert len(answer.tokens) == 3
    assert told[0].startswith(f"{SAVED} of http://127.0.0.1:")


def test_a_session_is_closed_and_sends_no_heartbeat_after(in_session: Run, stub: TinkerStub) -> None:
    async def client(client: SamplingClient) -> Any:
        assert "sessions/session/finish" not in stub.calls
        return client

    left = in_session(client)
    assert stub.calls[-1] == "sessions/session/finish" or "telemetry" in stub.calls[-1]
    assert left._client.holder._session_heartbeat_task.done()


def test_log_probabilities_after_temperature_are_not_believed(in_session: Run, stub: TinkerStub) -> None:
    """The stub gives those after temperature and filters, as a service may."""

    async def both(client: SamplingClient) -> Any:
        (answer,) = await client.sample(PROMPT, 1, SamplingParams(4, temperature=3.0))
        return answer, await client.compute_logprobs(PROMPT.append_ints(answer.tokens))

    answer, scores = in_session(both)
    np.testing.assert_allclose(answer.logprobs, scores[PROMPT.length :], atol=1e-5)
    before = len(stub.asked)
    in_session(sampling(SamplingParams(4)))
    assert len(stub.asked) == before + 1  # at temperature 1 its own are taken, and nothing is asked again


def test_stop_tokens_and_stop_texts_together_both_stop(in_session: Run, tokenizer: Tokenizer) -> None:
    (free,) = in_session(sampling(SamplingParams(8, seed=1)))
    word = tokenizer.decode(free.tokens[3:4])
    cut = in_session(sampling(SamplingParams(8, seed=1, stop_token_ids=(free.tokens[5],), stop_texts=(word,))))
    assert cut[0].tokens == free.tokens[:4]
    assert cut[0].stop_reason == "stop"
    cut = in_session(sampling(SamplingParams(8, seed=1, stop_token_ids=(free.tokens[2],), stop_texts=(word,))))
    assert cut[0].tokens == free.tokens[:3]


def test_a_filter_that_the_service_has_not_is_refused(in_session: Run, stub: TinkerStub) -> None:
    with pytest.raises(ConfigError, match="min_p: the Tinker service has no such filter; take 0"):
        in_session(sampling(SamplingParams(2, min_p=0.1)))
    assert stub.asked == []


HOT = SamplingParams(3, temperature=2.0)  # its log-probabilities are not looked at


@pytest.mark.parametrize(
    ("edit", "ask", "message"),
    [
        (lambda a: a.sequences.pop() and a, sampling(SamplingParams(3)), "1 sequence ids for 0 sequences"),
        (lambda a: _with(a, "tokens", np.int32([1] * 9)), sampling(HOT), "wrote 9 tokens where 3"),
        (lambda a: _with(a, "tokens", np.int32([70000])), sampling(HOT), "does not have: is it the same"),
        (lambda a: _with(a, "logprobs", np.float32([-1])), sampling(SamplingParams(3)), "3 tokens but 1 log-prob"),
        (lambda a: _stopped(a), sampling(SamplingParams(3)), "which no stop token or text asks for"),
        (lambda a: _unscored(a, b""), scoring, "did not give the log-probability of every token"),
        (lambda a: _unscored(a, np.float32([np.nan] * 4).tobytes()), scoring, "did not give the log-probability"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(
    edit: Any, ask: Any, message: str, in_session: Run, stub: TinkerStub
) -> None:
    stub.edit = edit
    with pytest.raises(ServerError, match=message):
        in_session(ask)


def _with(answer: Any, name: str, values: Any) -> Any:
    setattr(answer.sequences[0], name, values.tobytes())
    return answer


def _stopped(answer: Any) -> Any:
    from tinker.proto import tinker_public_pb2 as messages

    answer.sequences[0].stop_reason = messages.STOP_REASON_STOP
    return answer


def _unscored(answer: Any, scores: bytes) -> Any:
    answer.prompt_logprobs = scores
    return answer


def test_fewer_likely_tokens_than_were_asked_for_are_refused(in_session: Run, stub: TinkerStub) -> None:
    stub.toy.most_told = 2
    with pytest.raises(ServerError, match="did not give the 3 most likely tokens at every position"):
        in_session(lambda client: client.top_logprobs(PROMPT, 3))


def test_a_model_that_is_not_there_is_told_in_the_services_words(in_session: Run) -> None:
    with pytest.raises(ConfigError, match=r"refuses: status 400: Model No/Such is not supported$"):
        in_session(nothing, model="No/Such")


def test_what_the_service_lays_to_the_user_is_a_wrong_input(in_session: Run, stub: TinkerStub) -> None:
    stub.failures.append(("Prompt length plus max_tokens exceeds the context window", "user"))
    with pytest.raises(ConfigError, match=r"Toy/Base refuses: .*exceeds the context window"):
        in_session(sampling(SamplingParams(3)))
    stub.failures.append(("out of memory", "server"))
    with pytest.raises(ServerError, match=r"Toy/Base: .*out of memory"):
        in_session(sampling(SamplingParams(3)))


def test_a_service_that_is_busy_is_asked_again(in_session: Run, stub: TinkerStub) -> None:
    stub.refusals.append((429, "slow down"))
    (answer,) = in_session(sampling(SamplingParams(3)))
    assert len(answer.tokens) == 3


def test_nobody_there_is_told_in_time(in_session: Run) -> None:
    with pytest.raises(ServerError, match=r"^http://127.0.0.1:9: no answer in time$"):
        in_session(nothing, base_url="http://127.0.0.1:9", connect_timeout_s=0.5)


def test_a_request_that_lasts_too_long_is_given_up(in_session: Run, stub: TinkerStub) -> None:
    stub.refusals += [(429, "slow down")] * 50
    with pytest.raises(ServerError, match=r"Toy/Base: no answer in time$"):
        in_session(sampling(SamplingParams(3)), timeout_s=0.3)


def test_the_key_is_sent_and_never_shown(
    in_session: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: list[str]
) -> None:
    caplog.set_level(logging.DEBUG, "crucible_train")
    wrong = "tml-another-key-0123456789"
    monkeypatch.setenv(KEY_VARIABLE, wrong)
    with pytest.raises(ConfigError, match=rf"{KEY_VARIABLE}: .* does not take this key: status 401: ") as caught:
        in_session(nothing)
    shown = [str(caught.value), repr(caught.value), *told, caplog.text]
    assert not any(wrong in text for text in shown)


@pytest.mark.parametrize(
    ("value", "message"), [(None, "is not set"), (" ", "is not set"), ("sk-123", "holds no key of the service")]
)
def test_a_key_that_is_not_there_is_told_by_its_variable(
    in_session: Run, monkeypatch: pytest.MonkeyPatch, value: str | None, message: str
) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    if value is not None:
        monkeypatch.setenv(KEY_VARIABLE, value)
    with pytest.raises(ConfigError, match=f"the environment variable {KEY_VARIABLE} {message}") as caught:
        in_session(nothing)
    assert "sk-123" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    monkeypatch.setitem(sys.modules, "tinker", None)
    with pytest.raises(ConfigError, match=r'needs the library tinker: pip install "crucible-train\[tinker\]"'):
        wiring.check_tinker()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], None]:
    """Put a tokenizer where the hub's library keeps that of the service's base model."""

    def put(source: Path) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        folder = tmp_path / f"models--{BASE.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        shutil.copytree(source, folder / "snapshots" / ("0" * 40))

    return put


def test_another_tokenizer_than_the_models_own_is_refused(
    in_session: Run, fetched: Any, told: list[str], tiny_model: Path, tokenizer: Tokenizer
) -> None:
    own = FastTokenizer.from_folder(tiny_model)
    in_session(nothing)
    assert told[-1].endswith(f", whose tokenizer is taken to be {tokenizer.name}")
    other = own.definition
    other["added_tokens"] = other["added_tokens"][:-1]
    folder = tiny_model.parent / "other-tokenizer"
    FastTokenizer(other, own.config, "other").to_folder(folder)
    fetched(folder)
    with pytest.raises(ConfigError, match=r"^tokenizer: that of Toy/Base is another than .*smollm2; give /"):
        in_session(nothing)


def test_the_models_own_tokenizer_is_seen_to_be(
    in_session: Run, fetched: Any, told: list[str], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "own"
    tokenizer.to_folder(folder)  # type: ignore[attr-defined]
    fetched(folder)
    in_session(nothing)
    assert told == [told[0].partition(", ")[0] + ", whose tokenizer is at hand"]


@pytest.mark.parametrize("url", ["https://me:secret@h", "ftp://h", "https://h?key=secret"])
def test_an_address_that_is_none_or_holds_secrets_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url must") as caught:
        TinkerConfig(base_url=url)
    assert "secret@" not in str(caught.value)
    assert "key=secret" not in str(caught.value)
