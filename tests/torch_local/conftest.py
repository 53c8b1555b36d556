"""Tiny models of several families in folders, engines on them, and log-probabilities by plain transformers."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, Qwen3Config

from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.types import Datum, Hardware, ModelInput, TensorData

VOCAB = 61
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, **HEADS, **IDS, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**SIZES, **HEADS, **IDS, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, **HEADS, **IDS, tie_word_embeddings=False),
    "gpt2": GPT2Config(
        n_embd=16, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=64, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0
    ),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread_and_little_garbage() -> None:
    """Threads that wait for each other take longer than tiny models do, and so does garbage of the imports.

    An engine that closes collects garbage; what is there by now need not be looked through each time.
    """
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model whose predictions are far from uniform."""
    root = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        folder = root / name.replace(", ", "-")
        if not folder.exists():
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(3)
                model = AutoModelForCausalLM.from_config(CONFIGS[name])
                for parameter in model.parameters():
                    parameter.mul_(8.0) if parameter.ndim > 1 else parameter.add_(torch.rand_like(parameter))
                model.save_pretrained(folder)
        return folder

    return find


@pytest.fixture
def engine(model_folder: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., LocalBackend]]:
    """Make an engine of one thread; all are closed when the test ends."""
    made: list[LocalBackend] = []

    def make(
        name: str = "llama",
        *,
        rank: int | None = None,
        precision: Any = "float32",
        tokenizer: Any = None,
        folder: Path | None = None,
        **settings: Any,
    ) -> LocalBackend:
        lora = None if rank is None else Lora(r=rank, alpha=2.0 * rank, dropout=0.0, target_modules="all-linear")
        found = EngineSettings(Hardware("cpu", precision, 1), tmp_path / "states", **settings)
        made.append(LocalBackend(folder or model_folder(name), tokenizer, found, lora))
        return made[-1]

    yield make
    for backend in made:
        asyncio.run(backend.close())


@pytest.fixture
def datum() -> Callable[..., Datum]:
    """A sequence whose every token but the first is a target; ``weights`` stand with the targets."""

    def make(tokens: Any, weights: Any = None) -> Datum:
        tokens = np.asarray(tokens)
        weights = np.ones(tokens.size - 1, np.float32) if weights is None else np.asarray(weights, np.float32)
        return Datum(
            ModelInput.from_ints(tokens[:-1]),
            {"target_tokens": TensorData(tokens[1:], "int64"), "weights": TensorData(weights, "float32")},
        )

    return make
