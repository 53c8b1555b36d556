"""Servers that fail: what is tried again, how long is waited, what is told, and what never is."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import ValidationError

from crucible_train.adapters.openai_compatible.sampler import OpenAICompatibleSampler
from crucible_train.config.redaction import redacted
from crucible_train.config.server import ServerConfig
from crucible_train.errors import ConfigError, ServerError
from crucible_train.ports import Tokenizer
from crucible_train.types import ModelInput, SamplingParams
from tests.model_servers.stub import Fault, StubServer

PROMPT = ModelInput.from_ints([504, 2, 1, 300])
KEY = "correct-horse-battery-staple"
Make = Callable[..., OpenAICompatibleSampler]


def sample(client: OpenAICompatibleSampler, num: int = 1) -> list[Any]:
    return list(asyncio.run(client.sample(PROMPT, num, SamplingParams(4, seed=3))))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 429),
        Fault("status", 500),
        Fault("status", 503, body="<html>busy</html>"),
        Fault("cut"),
        Fault("garbage"),
    ],
    ids=lambda fault: f"{fault.kind}{fault.status}",
)
def test_what_another_try_may_mend_is_tried_again(make_client: Make, stub: StubServer, told: Any, fault: Fault) -> None:
    client = make_client()
    undisturbed = sample(client)
    stub.faults += [fault, fault]
    assert sample(client) == undisturbed
    assert len(told.waits) == 2
    assert 0 <= told.waits[0] <= 0.5
    assert 0 <= told.waits[1] <= 1.0


def test_a_server_that_hangs_is_left_and_asked_again(make_client: Make, stub: StubServer, told: Any) -> None:
    stub.faults.append(Fault("hang"))
    assert len(sample(make_client(timeout_s=2.0))) == 1
    assert len(told.waits) == 1


@pytest.mark.parametrize("is_date", [False, True])
def test_the_wait_a_server_asks_for_is_kept(make_client: Make, stub: StubServer, told: Any, is_date: bool) -> None:
    wanted = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True) if is_date else "40"
    stub.faults.append(Fault("status", 429, {"Retry-After": wanted}))
    sample(make_client())
    assert 20 < told.waits[0] <= 40


def test_a_wait_that_is_too_long_is_an_error_at_once(make_client: Make, stub: StubServer, told: Any) -> None:
    stub.faults.append(Fault("status", 429, {"Retry-After": "3600"}))
    with pytest.raises(ServerError, match=r"status 429: planted: it asks to wait 3600 s, longer than retry_max_s"):
        sample(make_client())
    assert told.waits == []


def test_a_retry_after_that_is_no_time_is_left_aside(make_client: Make, stub: StubServer, told: Any) -> None:
    stub.faults += [Fault("status", 503, {"Retry-After": text}) for text in ("soon", "-5", "nan", "²")]
    assert len(sample(make_client())) == 1
    assert max(told.waits) <= 4.0


def test_tries_end(make_client: Make, stub: StubServer, told: Any) -> None:
    stub.faults += [Fault("status", 500)] * 9
    with pytest.raises(ServerError, match=r"/v1/completions: status 500: planted \(3 tries\)$"):
        sample(make_client(max_retries=2))
    assert len(told.waits) == 2


def test_what_the_server_refuses_is_not_tried_again(make_client: Make, stub: StubServer, told: Any) -> None:
    stub.faults.append(Fault("status", 400, body='{"error": {"message": "context is 512 tokens"}}'))
    with pytest.raises(ServerError, match=r"status 400: context is 512 tokens$"):
        sample(make_client())
    stub.faults.append(Fault("shape"))
    with pytest.raises(ServerError, match=r"the server's completion cannot be read: choices"):
        sample(make_client())
    assert told.waits == []


def test_nobody_there_is_told(tokenizer: Tokenizer, told: Any) -> None:
    config = ServerConfig(base_url="http://127.0.0.1:9", max_retries=1)
    client = OpenAICompatibleSampler(config, tokenizer, told.lines.append, told.sleep)
    with pytest.raises(ServerError, match=r"127.0.0.1:9/v1/models: the connection failed: .*\(2 tries\)"):
        sample(client)


def test_a_redirect_is_not_followed(make_client: Make, stub: StubServer) -> None:
    stub.faults.append(Fault("status", 307, {"Location": "http://127.0.0.1:9/elsewhere"}))
    with pytest.raises(ServerError, match="status 307"):
        sample(make_client())


def test_one_sample_that_fails_stops_the_others(make_client: Make, stub: StubServer) -> None:
    stub.models = [{"id": "toy", "owned_by": "sglang"}]
    stub.faults += [Fault("status", 400), Fault("hang"), Fault("hang")]
    with pytest.raises(ServerError, match="status 400"):
        sample(make_client(), 3)
    assert_left(stub)


def test_a_caller_that_leaves_closes_its_request(make_client: Make, stub: StubServer) -> None:
    stub.faults.append(Fault("hang"))
    client = make_client()

    async def leave() -> None:
        waiting = asyncio.create_task(client.sample(PROMPT, 1, SamplingParams(4)))
        while not (stub.tries == 3 and stub.under_way):
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(asyncio.wait_for(leave(), 30))
    assert_left(stub)
    assert stub.num_left == 1


def assert_left(stub: StubServer) -> None:
    async def wait() -> None:
        while stub.under_way:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(wait(), 30))


def test_the_key_is_sent_and_never_shown(
    make_client: Make, stub: StubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stub.key = KEY
    monkeypatch.setenv("MODEL_SERVER_KEY", KEY)
    client = make_client(api_key_env="MODEL_SERVER_KEY")
    assert len(sample(client)) == 1
    stub.key = "another"  # the stub repeats in its error what it was sent
    with pytest.raises(ServerError, match=r"status 401: wrong key: ") as caught:
        sample(client)
    stub.key = KEY
    stub.faults.append(Fault("status", 403, body=f"forbidden: {KEY}"))
    with pytest.raises(ServerError, match=r"status 403: forbidden: \[redacted\]$") as forbidden:
        sample(client)
    config = ServerConfig(api_key_env="MODEL_SERVER_KEY")
    shown = [str(caught.value), repr(forbidden.value), repr(client), repr(vars(client)), repr(config)]
    assert not any(KEY in text for text in [*shown, caplog.text, str(redacted(config))])
    assert redacted(config)["api_key_env"] == "MODEL_SERVER_KEY"


@pytest.mark.parametrize(
    ("value", "message"), [(None, "is not set"), (" ", "is not set"), ("kéy", "does not hold a key")]
)
def test_a_key_that_is_not_there_is_told_by_its_variable(
    make_client: Make, monkeypatch: pytest.MonkeyPatch, value: str | None, message: str
) -> None:
    monkeypatch.delenv("MODEL_SERVER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MODEL_SERVER_KEY", value)
    with pytest.raises(ConfigError, match=f"^api_key_env: the environment variable MODEL_SERVER_KEY {message}$"):
        make_client(api_key_env="MODEL_SERVER_KEY")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"http://user:{KEY}@127.0.0.1:8000", "must not hold credentials"),
        (f"http://{KEY}@127.0.0.1:8000", "must not hold credentials"),
        (f"http://127.0.0.1:8000/v1?key={KEY}", "must not hold a query"),
        ("ftp://127.0.0.1", "must be the http or https address"),
        ("127.0.0.1:8000", "must be the http or https address"),
    ],
)
def test_an_address_that_is_none_or_holds_secrets_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        ServerConfig(base_url=url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", [KEY, "hf_abcdefghijkl", "sk-abc-123", "a b"])
def test_a_key_in_the_place_of_its_variable_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ValidationError, match="must be the name of an environment variable") as caught:
        ServerConfig(api_key_env=key)
    assert key not in str(caught.value)


def test_the_version_at_the_end_of_an_address_may_be_left_out() -> None:
    same = [ServerConfig(base_url=f"http://host:1/x{end}").base_url for end in ("", "/", "/v1", "/v1/")]
    assert set(same) == {"http://host:1/x"}
