"""A stub server of the test's own, and a way to make clients of it."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible_train import wiring
from crucible_train.adapters.openai_compatible.sampler import OpenAICompatibleSampler
from crucible_train.config.server import ServerConfig
from crucible_train.ports import Tokenizer
from tests.model_servers.running import running
from tests.model_servers.stub import StubServer

ASSETS = Path(__file__).parents[2] / "crucible_train" / "assets" / "smollm2"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return wiring.tokenizer(ASSETS)


@pytest.fixture
def stub(tokenizer: Tokenizer) -> StubServer:
    return StubServer(tokenizer.decode, tokenizer.vocab_size)


@pytest.fixture
def address(stub: StubServer) -> Iterator[str]:
    with running(stub) as url:
        yield url


class Told:
    """What a client said of the server, and how long it would have waited between tries."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def make_client(address: str, tokenizer: Tokenizer, told: Told) -> Callable[..., OpenAICompatibleSampler]:
    """A client of the stub; fields of its configuration as keywords."""

    def build(**fields: Any) -> OpenAICompatibleSampler:
        config = ServerConfig(base_url=address, **fields)
        return OpenAICompatibleSampler(config, tokenizer, told.lines.append, told.sleep)

    return build
