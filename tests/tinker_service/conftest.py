"""A stub of the service of the test's own, and a way to open sessions of it with the real SDK."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible_train import wiring
from crucible_train.config.tinker import KEY_VARIABLE, TinkerConfig
from crucible_train.ports import SamplingClient, Tokenizer
from tests.model_servers.running import running
from tests.model_servers.tinker_stub import BASE, KEY, TinkerStub

ASSETS = Path(__file__).parents[2] / "crucible_train" / "assets" / "smollm2"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return wiring.tokenizer(ASSETS)


@pytest.fixture
def stub(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> TinkerStub:
    pytest.importorskip("tinker", reason="install the extra `tinker`")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return TinkerStub(tokenizer.decode, tokenizer.vocab_size)


@pytest.fixture
def address(stub: TinkerStub) -> Iterator[str]:
    with running(stub) as url:
        yield url


@pytest.fixture
def told() -> list[str]:
    """What a session said."""
    return []


@pytest.fixture
def in_session(address: str, tokenizer: Tokenizer, told: list[str]) -> Callable[..., Any]:
    """What a function makes of a client of the stub, in a session of its own; the configuration's fields by name."""

    def run(function: Callable[[SamplingClient], Awaitable[Any]], **fields: Any) -> Any:
        config = TinkerConfig(**{"base_url": address, "model": BASE, "connect_timeout_s": 20.0, **fields})

        async def act() -> Any:
            async with wiring.tinker_client(config, tokenizer, told.append) as client:
                return await function(client)

        return asyncio.run(act())

    return run
