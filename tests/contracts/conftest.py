"""The training adapters, each a way to make clients on the tiny model, closed when the test ends; and model servers."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible_train import wiring
from crucible_train.config.server import ServerConfig
from crucible_train.ports import SamplingClient, Tokenizer, TrainingClient
from tests.model_servers.llama_cpp import llama_cpp
from tests.model_servers.running import running
from tests.model_servers.stub import StubServer


@pytest.fixture(scope="session")
def smollm2_tokenizer(tiny_model: Path) -> Tokenizer:
    made = wiring.tokenizer(tiny_model)
    gc.collect()
    gc.freeze()  # an engine that closes collects garbage: what is there by now need not be looked through each time
    return made


@pytest.fixture
def local_client(
    tiny_model: Path, smollm2_tokenizer: Tokenizer, tmp_path: Path
) -> Iterator[Callable[..., TrainingClient]]:
    """The local engine in float32 on one thread: the adapter's rank and dropout, no rank for full training, a head."""
    from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
    from crucible_train.adapters.torch_local.loading import Lora
    from crucible_train.adapters.torch_local.reward_backend import RewardBackend
    from crucible_train.types import Hardware

    made: list[Any] = []

    def build(rank: int | None, dropout: float = 0.0, *, has_head: bool = False) -> TrainingClient:
        lora = None if rank is None else Lora(rank, 4.0 * rank, dropout, "all-linear")
        settings = EngineSettings(Hardware("cpu", "float32", 1), tmp_path / "states", micro_batch_tokens=60, seed=3)
        kind = RewardBackend if has_head else LocalBackend
        made.append(kind(tiny_model, smollm2_tokenizer, settings, lora, name="tiny"))
        return wiring.conforming(made[-1], TrainingClient, "training client")

    yield build
    for client in made:
        asyncio.run(client.close())


@pytest.fixture(scope="session")
def vllm_client(smollm2_tokenizer: Tokenizer) -> Iterator[SamplingClient]:
    """A toy model behind a server that behaves as vLLM documents."""
    with running(StubServer(smollm2_tokenizer.decode, smollm2_tokenizer.vocab_size)) as url:
        yield wiring.sampling_client(ServerConfig(base_url=url), smollm2_tokenizer, lambda _: None)


@pytest.fixture(scope="session")
def sglang_client(smollm2_tokenizer: Tokenizer) -> Iterator[SamplingClient]:
    """The same, as SGLang documents."""
    with running(StubServer(smollm2_tokenizer.decode, smollm2_tokenizer.vocab_size, "sglang")) as url:
        yield wiring.sampling_client(ServerConfig(base_url=url), smollm2_tokenizer, lambda _: None)


@pytest.fixture(scope="session")
def llama_cpp_client(
    tiny_model: Path, smollm2_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SamplingClient]:
    """The tiny model behind llama.cpp's own server."""
    pytest.importorskip("xllamacpp", reason="install the extra `servers`")
    with llama_cpp(tiny_model, tmp_path_factory.mktemp("gguf")) as url:
        yield wiring.sampling_client(ServerConfig(base_url=url), smollm2_tokenizer, lambda _: None)
