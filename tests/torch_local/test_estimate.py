"""What is told of a model before it is loaded: its size to the weight, its memory by what each weight needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from crucible_train.adapters.torch_local import estimate as estimating
from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.estimate import Copy, Seconds, estimate, extended
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.types import Estimate, Hardware

LORA = Lora(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")


@pytest.fixture(autouse=True)
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts do not change from one look to the next, and no test asserts a speed of this machine."""
    monkeypatch.setattr(estimating, "_NUM_VISITS", 1)
    monkeypatch.setattr(estimating, "_NUM_REPEATS", 1)


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


def copy_of(num_layers: int, seconds: float) -> Copy:
    """A copy with an output layer of eight million weights and layers of one million, which took ``seconds``."""
    num_params = 1_000_000 * (8 + num_layers)
    return Copy(num_layers, Seconds(*[seconds] * 5), 100 * num_layers, 2 * num_params, num_params, 10 * num_layers)


@pytest.mark.parametrize(
    ("few", "more", "whole"),
    [
        pytest.param(0.20, 0.40, 0.20 + 29 * 0.05, id="a layer costs the difference"),
        pytest.param(0.20, 0.19, 0.19 * 38 / 13, id="less than nothing: by weights"),
        pytest.param(0.20, 0.20, 0.20 * 38 / 13, id="nothing: by weights"),
        pytest.param(0.20, 0.202, 0.202 * 38 / 13, id="too little to be seen: by weights"),
        pytest.param(0.01, 0.40, 0.40 * 30 / 5, id="never more than if layers were all there is"),
    ],
)
def test_a_model_takes_what_two_copies_say(few: float, more: float, whole: float) -> None:
    told = extended(copy_of(1, few), copy_of(5, more), 30)
    assert told.seconds.train == pytest.approx(whole)
    assert told.seconds == Seconds(*[told.seconds.train] * 5)
    expected = copy_of(30, 0.0)
    assert (told.num_params, told.num_trained) == (expected.num_params, expected.num_trained)
    assert (told.activation_bytes, told.frozen_bytes) == (expected.activation_bytes, expected.frozen_bytes)


def test_the_least_of_several_looks_counts_and_the_copies_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that were disturbed, in a row or alone, change nothing."""
    monkeypatch.setattr(estimating, "_NUM_VISITS", 3)
    planted = {1: iter([0.9, 0.20, 0.31]), 5: iter([1.8, 0.72, 0.40])}
    order = []

    def look(num_layers: int) -> Copy:
        order.append(num_layers)
        return copy_of(num_layers, next(planted[num_layers]))

    told = estimating._visited(look, 1, 5, 30)
    assert order == [1, 5] * 3
    assert told.seconds.train == pytest.approx(0.20 + 29 * 0.05)


def test_a_slow_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_NUM_VISITS", 3)
    monkeypatch.setattr(estimating, "_ENOUGH_S", 0.0)
    order = []

    def look(num_layers: int) -> Copy:
        order.append(num_layers)
        return copy_of(num_layers, 0.1 * num_layers)

    estimating._visited(look, 1, 3, 30)
    assert order == [1, 3]


@pytest.mark.parametrize(
    ("hidden_size", "num_layers", "expected"),
    [(576, 30, (1, 7)), (1024, 28, (1, 4)), (4096, 32, (1, 3)), (576, 5, (1, 5)), (16, 1, (1, 1))],
)
def test_narrow_models_get_more_layers_to_tell_by(hidden_size: int, num_layers: int, expected: tuple[int, int]) -> None:
    assert estimating._sizes(hidden_size, num_layers) == expected
