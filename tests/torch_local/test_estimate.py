"""What is told of a model before it is loaded: its size to the weight, its memory by what each weight needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from crucible_train.adapters.torch_local import estimate as estimating
from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.estimate import estimate
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.types import Estimate, Hardware

LORA = Lora(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")


def found(folder: Path, lora: Lora | None = None, precision: Any = "float32", **settings: Any) -> Estimate:
    engine = EngineSettings(Hardware("cpu", precision, 1), Path("nowhere"), **{"micro_batch_tokens": 48, **settings})
    return estimate(folder, engine, lora, mean_length=16, num_written=2)


def with_layers(folder: Path, num: int, made: Path) -> Path:
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = num
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * num
    config.save_pretrained(made)
    return made


@pytest.mark.parametrize("num_layers", [1, 2, 7])
@pytest.mark.parametrize("name", ["llama", "llama, untied", "qwen3", "gpt2"])
def test_weights_are_counted_exactly(
    name: str, num_layers: int, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = with_layers(model_folder(name), num_layers, tmp_path / "made")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    expected = sum(parameter.numel() for parameter in model.parameters())
    told = found(folder)
    assert told.num_params == told.num_trained_params == expected
    assert told.hidden_size == 16


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_weights_of_an_adapter_are_those_the_engine_trains(
    name: str, model_folder: Callable[[str], Path], engine: Callable[..., LocalBackend]
) -> None:
    told, info = found(model_folder(name), LORA), engine(name, rank=4).model_info()
    assert (told.num_params, told.num_trained_params) == (info.num_params, info.num_trainable_params)


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose weights outweigh all else, in a process that holds nothing."""
    monkeypatch.setattr(estimating, "resident_bytes", lambda: 0)
    monkeypatch.setattr(estimating, "MAX_CHUNK_BYTES", 0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=500,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    config.save_pretrained(tmp_path / "heavy")
    return tmp_path / "heavy"


def test_memory_is_that_of_weights_gradients_moments_and_copies(heavy: Path) -> None:
    full, lora = (found(heavy, adapter, micro_batch_tokens=4) for adapter in (None, LORA))
    assert full.num_params == lora.num_params - lora.num_trained_params
    # trained: weight, gradient, two moments, and copies of weight and moments while a checkpoint is written
    assert full.peak_bytes == pytest.approx(28 * full.num_params, rel=0.05)
    assert full.peak_bytes > 28 * full.num_params
    frozen = lora.num_params - lora.num_trained_params
    assert lora.peak_bytes == pytest.approx(4 * frozen + 28 * lora.num_trained_params, rel=0.1)
    assert lora.peak_bytes > 4 * frozen + 28 * lora.num_trained_params


def test_bfloat16_halves_frozen_weights_and_adds_a_shadow_to_trained_ones(heavy: Path) -> None:
    full = found(heavy, precision="bfloat16", micro_batch_tokens=4)
    assert full.peak_bytes == pytest.approx(30 * full.num_params, rel=0.05)
    lora = found(heavy, LORA, precision="bfloat16", micro_batch_tokens=4)
    frozen = lora.num_params - lora.num_trained_params
    assert lora.peak_bytes == pytest.approx(2 * frozen + 30 * lora.num_trained_params, rel=0.15)


def test_activations_grow_with_the_tokens_computed_at_once_unless_they_are_recomputed(heavy: Path) -> None:
    few, many = (found(heavy, LORA, micro_batch_tokens=num).peak_bytes for num in (64, 512))
    weights = few - (many - few) / 7
    assert many - weights == pytest.approx(8 * (few - weights), rel=0.01)
    lean = found(heavy, LORA, micro_batch_tokens=512, activation_checkpointing=True).peak_bytes
    assert lean - weights < 0.5 * (many - weights)


def test_speeds_are_positive_and_the_random_state_is_left_alone(model_folder: Callable[[str], Path]) -> None:
    state = torch.random.get_rng_state()
    told = found(model_folder("llama"))
    assert min(told.train_tokens_per_second, told.forward_tokens_per_second, told.write_step_s) > 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_passes_are_shorter_where_an_adapter_is_trained_in_little_memory() -> None:
    lora = Lora(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")

    def sizes(device: str, precision: str, micro_batch_tokens: int = 0) -> tuple[int, int]:
        settings = EngineSettings(Hardware(device, precision, 1), Path(), micro_batch_tokens=micro_batch_tokens)  # type: ignore[arg-type]
        return settings.max_tokens(lora), settings.max_tokens(None)

    assert sizes("cpu", "bfloat16") == (384, 768)
    assert sizes("cpu", "float32") == (768, 768)
    assert sizes("cuda", "bfloat16") == (16384, 16384)
    assert sizes("cpu", "bfloat16", micro_batch_tokens=100) == (100, 100)
