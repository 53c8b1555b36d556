"""How fast and how large a model will be here, found on copies of one and three of its layers.

The difference between the two is what a layer costs; the rest is embedding, output layer and fixed work. The copies
have the model's own widths and vocabulary, so the figures hold whatever the processor, the precision or the adapter.
"""

import asyncio
import copy
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.hardware import resident_bytes
from crucible_train.adapters.torch_local.loading import EngineModel, Lora, blank
from crucible_train.adapters.torch_local.loss_head import MAX_CHUNK_BYTES
from crucible_train.types import (
    AdamParams,
    CrossEntropy,
    Datum,
    Estimate,
    ModelInput,
    SamplingParams,
    TensorData,
)

_FEW, _MORE = 1, 3
_NUM_REPEATS = 3
_NUM_WRITTEN = 6
_USUAL_PASSES_A_STEP = 4
_PROMPT_TOKENS = 32
# Weight, gradient, two moments; and while a checkpoint is written, copies of the weight and the moments.
_BYTES_A_TRAINED_WEIGHT = 4 + 4 + 8 + 12


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a model with few layers needs."""

    step_s: float
    forward_s: float
    write_s: float
    activation_bytes: int
    frozen_bytes: int
    num_params: int
    num_trained: int

    def extended(self, other: "_Measured", num_layers: int, num_more: int) -> "_Measured":
        """Extrapolated: this one has ``num_layers`` fewer than ``other``, and ``num_more`` fewer than what is asked."""

        def along(name: str) -> float:
            mine: float = getattr(self, name)
            return mine + max(0.0, getattr(other, name) - mine) / num_layers * num_more

        times = {name: along(name) for name in ("step_s", "forward_s", "write_s")}
        counts = {
            name: round(along(name)) for name in ("activation_bytes", "frozen_bytes", "num_params", "num_trained")
        }
        return _Measured(**times, **counts)  # type: ignore[arg-type]


def estimate(
    model_dir: Path, settings: EngineSettings, lora: Lora | None, mean_length: int, num_written: int
) -> Estimate:
    """Speed and memory of training and sampling a model, in about two seconds.

    Args:
        model_dir: a folder with the model's config.json; weights are not needed.
        settings: how the engine is to compute.
        lora: the adapter to train; None trains all weights.
        mean_length: tokens of an ordinary sequence.
        num_written: answers that are written at once.
    """
    start_bytes, num_tokens = resident_bytes(), settings.max_tokens(lora)
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    num_layers = config.get_text_config().num_hidden_layers
    few, more = min(_FEW, num_layers), min(_MORE, num_layers)
    least = _measure(_shortened(config, few), settings, lora, mean_length, num_written)
    whole = least
    if more > few:
        larger = _measure(_shortened(config, more), settings, lora, mean_length, num_written)
        whole = least.extended(larger, more - few, num_layers - few)
    trained_bytes = whole.num_trained * (
        _BYTES_A_TRAINED_WEIGHT + (2 if settings.hardware.precision == "bfloat16" else 0)
    )
    return Estimate(
        hidden_size=config.get_text_config().hidden_size,
        num_params=whole.num_params,
        num_trained_params=whole.num_trained,
        train_tokens_per_second=num_tokens / whole.step_s,
        forward_tokens_per_second=num_tokens / whole.forward_s,
        write_step_s=whole.write_s,
        peak_bytes=start_bytes + whole.frozen_bytes + trained_bytes + whole.activation_bytes + MAX_CHUNK_BYTES,
    )


def _shortened(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = num_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:num_layers]
    return short


def _measure(
    config: PreTrainedConfig, settings: EngineSettings, lora: Lora | None, mean_length: int, num_written: int
) -> _Measured:
    kept: dict[int, int] = {}
    weights: set[int] = set()
    frozen: list[int] = []

    def build() -> EngineModel:
        # entered for good: the engine's thread, in which this runs, ends with the backend
        torch.autograd.graph.saved_tensors_hooks(_counting(kept, weights), lambda tensor: tensor).__enter__()
        model = blank(config, settings.hardware, lora, recompute=settings.activation_checkpointing)
        weights.update(parameter.untyped_storage().data_ptr() for parameter in model.causal.parameters())
        frozen.extend(p.numel() * p.element_size() for p in model.causal.parameters() if not p.requires_grad)
        return model

    with TemporaryDirectory() as folder:
        backend = LocalBackend(build, None, replace(settings, state_dir=Path(folder)), lora)  # type: ignore[arg-type]
        try:
            measured = asyncio.run(_timed(backend, kept, settings.max_tokens(lora), mean_length, num_written))
            return replace(measured, frozen_bytes=sum(frozen))
        finally:
            asyncio.run(backend.close())


async def _timed(
    backend: LocalBackend, kept: dict[int, int], num_tokens: int, mean_length: int, num_written: int
) -> _Measured:
    info = backend.model_info()
    length = max(2, min(mean_length, num_tokens, info.max_positions))
    datums = [_datum(length, info.vocab_size, number) for number in range(max(1, num_tokens // length))]
    share = num_tokens / (length * len(datums))
    step_s, forward_s = [], []
    for _ in range(_NUM_REPEATS):
        kept.clear()
        start = time.perf_counter()
        await backend.forward_backward(datums, CrossEntropy())
        step_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        await backend.forward(datums, CrossEntropy())
        forward_s.append(time.perf_counter() - start)
    start = time.perf_counter()
    await backend.optim_step(AdamParams(learning_rate=0.0))
    optim_s = time.perf_counter() - start
    prompt = ModelInput.from_ints(np.arange(min(_PROMPT_TOKENS, info.max_positions - _NUM_WRITTEN)) % info.vocab_size)

    async def write(num: int) -> float:
        start = time.perf_counter()
        await backend.sampling_client().sample(prompt, num_written, SamplingParams(max_tokens=num, temperature=0.0))
        return time.perf_counter() - start

    await write(1)
    write_s = (await write(_NUM_WRITTEN) - await write(1)) / (_NUM_WRITTEN - 1)
    return _Measured(
        step_s=statistics.median(step_s) * share + optim_s / _USUAL_PASSES_A_STEP,
        forward_s=statistics.median(forward_s) * share,
        write_s=max(write_s, 1e-6),
        activation_bytes=round(sum(kept.values()) * share),
        frozen_bytes=0,
        num_params=info.num_params,
        num_trained=info.num_trainable_params,
    )


def _counting(kept: dict[int, int], weights: Collection[int]) -> Callable[[Tensor], Tensor]:
    """Note the memory behind each tensor that is kept for the backward pass, once; ``weights`` are there anyway."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    return pack


def _datum(length: int, vocab_size: int, number: int) -> Datum:
    """Half of it is trained."""
    tokens = (np.arange(length + 1) * 7 + number) % vocab_size
    weights = np.zeros(length, np.float32)
    weights[length // 2 :] = 1.0
    return Datum(
        ModelInput.from_ints(tokens[:-1]),
        {"target_tokens": TensorData(tokens[1:], "int64"), "weights": TensorData(weights, "float32")},
    )
