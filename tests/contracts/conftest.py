"""The training adapters, each a way to make clients on the tiny model; they are closed when the test ends."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible_train import wiring
from crucible_train.ports import Tokenizer, TrainingClient


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
    """The local engine in float32 on one thread; the rank and dropout of the adapter, or no rank for full training."""
    from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
    from crucible_train.adapters.torch_local.loading import Lora
    from crucible_train.types import Hardware

    made: list[Any] = []

    def build(rank: int | None, dropout: float = 0.0) -> TrainingClient:
        lora = None if rank is None else Lora(rank, 4.0 * rank, dropout, "all-linear")
        settings = EngineSettings(Hardware("cpu", "float32", 1), tmp_path / "states", micro_batch_tokens=60, seed=3)
        made.append(LocalBackend(tiny_model, smollm2_tokenizer, settings, lora, name="tiny"))
        return wiring.conforming(made[-1], TrainingClient, "training client")

    yield build
    for client in made:
        asyncio.run(client.close())
