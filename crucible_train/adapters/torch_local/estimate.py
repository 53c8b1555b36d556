"""How fast and how large a model will be here, found on copies of one and three of its layers.

The difference between the two is what a layer costs; the rest is embedding, output layer and fixed work. The copies
have the model's own widths and vocabulary, so the figures hold whatever the processor, the precision or the adapter.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from copy import deepcopy
from dataclasses import dataclass, fields, replace
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

# Layers of the smaller copy, and the least and the most that the larger one has besides: enough of them to weigh in
# beside the output layer, few enough that a copy stays small.
_FEW, _LEAST_MORE, _MOST_MORE = 1, 2, 6
_WEIGHTS_THAT_TELL = 40_000_000
_NUM_VISITS = 3
_NUM_REPEATS = 3
_ENOUGH_S = 4.0
_NUM_WRITTEN = 6
_USUAL_PASSES_A_STEP = 4
_PROMPT_TOKENS = 32
# Further layers that seem to cost less than this share of what their weights would cost were not seen for the noise.
_TINY = 0.05
# Weight, gradient, two moments; and while a checkpoint is written, copies of the weight and the moments.
_BYTES_A_TRAINED_WEIGHT = 4 + 4 + 8 + 12


@dataclass(frozen=True, slots=True)
class Seconds:
    """What single pieces of work took on a copy.

    Attributes:
        train: a forward and backward pass of all positions that are computed at once.
        forward: a forward pass of them.
        optim: an optimizer step.
        first: writing the first token of every answer, prompts included.
        write: writing one more token of every answer.
    """

    train: float
    forward: float
    optim: float
    first: float
    write: float

    def or_less(self, other: "Seconds") -> "Seconds":
        """The lesser of each: whatever disturbs a machine adds time and takes none away."""
        return Seconds(*(min(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)))


@dataclass(frozen=True, slots=True)
class Copy:
    """A model with few layers: what it takes and what it holds."""

    num_layers: int
    seconds: Seconds
    activation_bytes: int
    frozen_bytes: int
    num_params: int
    num_trained: int


def extended(few: Copy, more: Copy, num_layers: int) -> Copy:
    """The model with all its layers, after two copies of it that differ in layers only."""
    steps = (num_layers - more.num_layers) / (more.num_layers - few.num_layers)

    def along(name: str) -> int:
        mine: int = getattr(more, name)
        return mine + round((mine - getattr(few, name)) * steps)

    growth = along("num_params") / more.num_params

    def took(name: str) -> float:
        """By the difference of the copies, within what the larger one alone allows."""
        less, most = getattr(few.seconds, name), getattr(more.seconds, name)
        further = (most - less) * steps
        if further < _TINY * most * (growth - 1):
            further = most * (growth - 1)
        return float(min(most + further, most * num_layers / more.num_layers))

    return Copy(
        num_layers,
        Seconds(*(took(one.name) for one in fields(Seconds))),
        **{name: along(name) for name in ("activation_bytes", "frozen_bytes", "num_params", "num_trained")},
    )


def estimate(
    model_dir: Path, settings: EngineSettings, lora: Lora | None, mean_length: int, num_written: int
) -> Estimate:
    """Speed and memory of training and sampling a model, in a few seconds.

    Args:
        model_dir: a folder with the model's config.json; weights are not needed.
        settings: how the engine is to compute.
        lora: the adapter to train; None trains all weights.
        mean_length: tokens of an ordinary sequence.
        num_written: answers that are written at once.
    """
    start_bytes, num_tokens = resident_bytes(), settings.max_tokens(lora)
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    few, more = _sizes(text.hidden_size, text.num_hidden_layers)

    def measure(num_layers: int) -> Copy:
        return _measure(_shortened(config, num_layers), settings, lora, mean_length, num_written)

    whole = _visited(measure, few, more, text.num_hidden_layers)
    trained_bytes = whole.num_trained * (
        _BYTES_A_TRAINED_WEIGHT + (2 if settings.hardware.precision == "bfloat16" else 0)
    )
    return Estimate(
        hidden_size=text.hidden_size,
        num_params=whole.num_params,
        num_trained_params=whole.num_trained,
        train_tokens_per_second=num_tokens / (whole.seconds.train + whole.seconds.optim / _USUAL_PASSES_A_STEP),
        forward_tokens_per_second=num_tokens / whole.seconds.forward,
        write_step_s=whole.seconds.write,
        peak_bytes=start_bytes + whole.frozen_bytes + trained_bytes + whole.activation_bytes + MAX_CHUNK_BYTES,
    )


def _sizes(hidden_size: int, num_layers: int) -> tuple[int, int]:
    """How many layers the two copies have; equal where one is the model itself."""
    further = max(_LEAST_MORE, min(_MOST_MORE, _WEIGHTS_THAT_TELL // (12 * hidden_size**2)))
    return min(_FEW, num_layers), min(_FEW + further, num_layers)


def _visited(measure: Callable[[int], Copy], few: int, more: int, num_layers: int) -> Copy:
    """Both copies in turns, so that what disturbs the machine for a while does not fall upon one of them alone."""
    found: dict[int, Copy] = {}
    start = time.perf_counter()
    for _ in range(_NUM_VISITS):
        for size in dict.fromkeys((few, more)):
            copy = measure(size)
            known = found.get(size, copy)
            found[size] = replace(copy, seconds=copy.seconds.or_less(known.seconds))
        if time.perf_counter() - start > _ENOUGH_S:
            break
    return extended(found[few], found[more], num_layers) if more > few else found[few]


def _shortened(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    short = deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = num_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:num_layers]
    return short


def _measure(
    config: PreTrainedConfig, settings: EngineSettings, lora: Lora | None, mean_length: int, num_written: int
) -> Copy:
    num_layers = config.get_text_config().num_hidden_layers
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
            return replace(measured, num_layers=num_layers, frozen_bytes=sum(frozen))
        finally:
            asyncio.run(backend.close())


async def _timed(
    backend: LocalBackend, kept: dict[int, int], num_tokens: int, mean_length: int, num_written: int
) -> Copy:
    info = backend.model_info()
    length = max(2, min(mean_length, num_tokens, info.max_positions))
    datums = [_datum(length, info.vocab_size, number) for number in range(max(1, num_tokens // length))]
    share = num_tokens / (length * len(datums))
    prompt = np.arange(min(_PROMPT_TOKENS, info.max_positions - _NUM_WRITTEN))

    async def seconds(work: Awaitable[object]) -> float:
        start = time.perf_counter()
        await work
        return time.perf_counter() - start

    async def once() -> Seconds:
        kept.clear()
        client = backend.sampling_client()
        written = []
        for num in (1, _NUM_WRITTEN):
            own = ModelInput.from_ints((prompt + num) % info.vocab_size)  # each is to read its prompt
            written.append(await seconds(client.sample(own, num_written, SamplingParams(num, temperature=0.0))))
        return Seconds(
            train=share * await seconds(backend.forward_backward(datums, CrossEntropy())),
            forward=share * await seconds(backend.forward(datums, CrossEntropy())),
            optim=await seconds(backend.optim_step(AdamParams(learning_rate=0.0))),
            first=written[0],
            write=written[1],
        )

    least = await once()
    for _ in range(_NUM_REPEATS - 1):
        least = least.or_less(await once())
    # what the further tokens took: a difference of the least of each, not the least of noisy differences
    write = max((least.write - least.first) / (_NUM_WRITTEN - 1), least.write / _NUM_WRITTEN / 2)
    return Copy(
        num_layers=0,
        seconds=replace(least, write=write),
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
