"""The training port over the local engine.

All computing happens in one thread of its own, in the order it was asked for; files are written by another. The event
loop stays free for logging, signals and Prefect.

Axes: D datums, N positions of a datum, S scored positions.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from crucible_train import checkpoints, files
from crucible_train.adapters.torch_local.divergence_head import Rows
from crucible_train.adapters.torch_local.loading import EngineModel, Lora, load
from crucible_train.adapters.torch_local.loss_head import gradient_of
from crucible_train.adapters.torch_local.memory import give_back_memory
from crucible_train.adapters.torch_local.modules import trainable
from crucible_train.adapters.torch_local.passes import custom_loss, stream_divergence, stream_loss
from crucible_train.adapters.torch_local.placing import datum_with_weights, scatter, unscored
from crucible_train.adapters.torch_local.sampler import Sampler
from crucible_train.adapters.torch_local.serving import Serving
from crucible_train.adapters.torch_local.state import adamw, restore, take_snapshot
from crucible_train.adapters.torch_local.stream import TokenStream, lay_out
from crucible_train.adapters.torch_local.teaching import layout_of, teacher_items
from crucible_train.adapters.torch_local.training_mode import TrainingMode
from crucible_train.adapters.torch_local.worker import Worker
from crucible_train.errors import CheckpointError, CrucibleError, TrainingError
from crucible_train.losses import DistributionLoss, LossFunction, loss_function
from crucible_train.ports import ModelInfo, SamplingClient, StepOutput, Tokenizer
from crucible_train.types import (
    AdamParams,
    ArtifactRef,
    CrossEntropy,
    CustomLoss,
    Datum,
    Divergence,
    Hardware,
    Loss,
    ModelInput,
    SamplerStats,
    SamplingParams,
    TokensWithLogprobs,
)

T = TypeVar("T")
STATE_KIND = "state"
DEFAULT_MICRO_BATCH_TOKENS = {"cpu": 768, "cuda": 16384}
# On a processor that is fast in bfloat16, an adapter is trained where memory is short: passes of this length fit there.
_LEAN_MICRO_BATCH_TOKENS = 384


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine computes: where, how much at once, and where it keeps states."""

    hardware: Hardware
    state_dir: Path
    micro_batch_tokens: int = 0
    activation_checkpointing: bool = False
    seed: int = 0

    def max_tokens(self, lora: Lora | None) -> int:
        """Positions computed at once where this adapter, or with None all weights, are trained."""
        if self.micro_batch_tokens:
            return self.micro_batch_tokens
        is_lean = lora is not None and self.hardware.device == "cpu" and self.hardware.precision == "bfloat16"
        return _LEAN_MICRO_BATCH_TOKENS if is_lean else DEFAULT_MICRO_BATCH_TOKENS[self.hardware.device]


class LocalBackend:
    """Trains and samples one model in this process."""

    def __init__(
        self,
        model: Path | Callable[[], EngineModel],
        tokenizer: Tokenizer,
        settings: EngineSettings,
        lora: Lora | None,
        adapter: Path | None = None,
        name: str = "",
    ) -> None:
        """Load the model.

        Args:
            model: a transformers model folder, or what makes the model, in the engine's thread.
            tokenizer: its tokenizer.
            settings: how to compute.
            lora: the adapter to train; None trains all weights.
            adapter: adapter weights to begin from.
            name: what the model is called in reports.

        Raises:
            ModelError: the folder holds no model this engine computes.
        """
        self._settings = settings
        self._tokenizer = tokenizer
        self._name = name or (str(model) if isinstance(model, Path) else "")
        self._lora = lora
        give_back_memory()
        self._engine = Worker("crucible-engine")
        self._writer = Worker("crucible-writer")
        self._abandoned = threading.Event()
        self._num_backwards = 0
        # The engine's thread loads, too: a second thread that computes would get processor threads of its own, and
        # with more of them than cores each waits for the others to be woken.
        self._model: EngineModel = self._engine.submit(self._load, model, adapter).result()
        self._training = TrainingMode(self._model.causal, settings.seed, recompute=settings.activation_checkpointing)
        self._parameters = trainable(self._model.causal)
        self._serving = Serving(self._engine, self._model, self._decode, contextlib.nullcontext)
        self._base = Serving(self._engine, self._model, self._decode, self._without_adapter)
        self._servings: tuple[Serving, ...] = (self._serving, self._base)
        self._optimizer = adamw([parameter for _, parameter in self._parameters])

    # The training port -----------------------------------------------------------------------------------------------

    async def forward_backward(self, datums: Sequence[Datum], loss: Loss) -> StepOutput:
        """Add the gradient of ``loss`` over ``datums`` to what has been gathered."""
        return await self._compute(self._pass, datums, loss, True, True)

    async def forward(self, datums: Sequence[Datum], loss: Loss, *, with_adapter: bool = True) -> StepOutput:
        """Compute ``loss`` over ``datums`` without a gradient."""
        return await self._compute(self._pass, datums, loss, False, with_adapter)

    async def optim_step(self, adam: AdamParams) -> Mapping[str, float]:
        """Take one AdamW step with the gathered gradient and clear it."""
        try:
            return await self._compute(self._step, adam)
        except RuntimeError as error:
            if isinstance(error, CrucibleError):
                raise
            raise TrainingError(f"an optimizer step failed: {error}") from error

    async def save_state(
        self, name: str, *, attachments: Mapping[str, bytes] | None = None, with_optimizer: bool = True
    ) -> ArtifactRef:
        """Store weights, optimizer and ``attachments`` as one whole under ``name``."""
        optimizer = self._optimizer if with_optimizer else None
        snapshot = await self._compute(take_snapshot, self._model, self._parameters, optimizer, self._name)
        folder = self._settings.state_dir / name

        def fill(temporary: Path) -> None:
            snapshot.write(temporary)
            for attachment, data in (attachments or {}).items():
                files.write_bytes(temporary / attachment, data)

        digest = await asyncio.wrap_future(self._writer.submit(checkpoints.write_checkpoint, folder, fill))
        size = sum(path.stat().st_size for path in folder.iterdir())
        return ArtifactRef(uri=str(folder), sha256=digest, kind=STATE_KIND, size=size)

    async def load_state(self, ref: ArtifactRef) -> None:
        """Restore what ``save_state`` stored."""
        folder = Path(ref.uri)
        if checkpoints.verify(folder) != ref.sha256:
            raise CheckpointError(f"{folder}: it is not the state that was asked for")
        await self._compute(self._restore, folder)

    def sampling_client(self, *, with_adapter: bool = True) -> SamplingClient:
        """This backend, or a client of the base model: the weights as they are, with nothing of what was sampled."""
        if not with_adapter and self._model.peft is None:
            raise TrainingError("all weights are trained: there is no adapter to switch off")
        serving = self._serving if with_adapter else self._base
        serving.turn_over()
        self._engine.submit(serving.forget)
        return self if with_adapter else self._base

    def model_info(self) -> ModelInfo:
        """What is being trained."""
        hardware, config = self._settings.hardware, self._model.causal.config.get_text_config()
        return ModelInfo(
            name=self._name,
            num_params=sum(p.numel() for p in self._model.causal.parameters()),
            num_trainable_params=sum(parameter.numel() for _, parameter in self._parameters),
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            adapter="full" if self._lora is None else "lora",
            precision=hardware.precision,
            device=hardware.device,
            num_threads=hardware.num_threads,
        )

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    async def close(self) -> None:
        """Finish what was asked for and free the model."""
        self._turn_over()
        await asyncio.to_thread(self._engine.close)
        await asyncio.to_thread(self._writer.close)
        self._optimizer.state.clear()
        self._parameters, self._servings = [], ()
        with contextlib.suppress(AttributeError):  # closed before
            del self._model, self._training, self._serving, self._base
        await asyncio.to_thread(give_back_memory)  # the twins' closures and their modules hold each other

    # The sampling port -----------------------------------------------------------------------------------------------

    async def sample(
        self, prompt: ModelInput, num_samples: int, params: SamplingParams
    ) -> Sequence[TokensWithLogprobs]:
        """Write ``num_samples`` continuations of ``prompt``, in one batch with whatever else waits."""
        return await self._serving.sample(prompt, num_samples, params)

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        """The log-probability of each token given those before it; None for the first."""
        return await self._serving.compute_logprobs(model_input)

    async def top_logprobs(self, model_input: ModelInput, k: int) -> Sequence[Sequence[tuple[int, float]] | None]:
        """The ``k`` most likely tokens at each position given those before it, as (id, log-probability)."""
        return await self._serving.top_logprobs(model_input, k)

    def sampler_stats(self) -> SamplerStats:
        """What sampling has cost so far."""
        return self._serving.stats()

    @property
    def _sampler(self) -> Sampler:
        return self._serving.sampler

    def _load(self, model: Path | Callable[[], EngineModel], adapter: Path | None) -> EngineModel:
        settings = self._settings
        torch.set_num_threads(settings.hardware.num_threads)
        if not isinstance(model, Path):
            return model()
        recompute = settings.activation_checkpointing
        return load(model, settings.hardware, self._lora, adapter, settings.seed, recompute=recompute)

    # In the engine's thread ------------------------------------------------------------------------------------------

    async def _compute(self, function: Callable[..., T], *args: Any) -> T:
        """Run in the engine's thread; a caller that is cancelled makes the engine drop its pass."""
        self._turn_over()  # what was asked before this call sees the weights before it
        abandoned = threading.Event()
        future = self._engine.submit(self._guarded, abandoned, function, *args)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            abandoned.set()
            raise

    def _turn_over(self) -> None:
        """Let nothing join what was asked so far."""
        for serving in self._servings:
            serving.turn_over()

    def _guarded(self, abandoned: threading.Event, function: Callable[..., T], *args: Any) -> T:
        self._abandoned = abandoned
        for serving in self._servings:
            serving.forget()  # what it knows is of weights that may change, and training needs the memory
        return function(*args)

    def _restore(self, folder: Path) -> None:
        restore(folder, self._model, self._parameters, self._optimizer)

    def _pass(self, datums: Sequence[Datum], loss: Loss, with_gradient: bool, with_adapter: bool) -> StepOutput:
        try:
            with self._adapter(is_on=with_adapter):
                custom = custom_loss(loss, joins_segments=self._model.joins_segments)
                if custom is not None:
                    return self._custom(datums, custom, with_gradient)
                return self._sum_over(datums, loss, with_gradient)
        except Exception as error:
            if with_gradient:
                self._clear_gradients()
            if isinstance(error, CrucibleError):
                raise
            raise TrainingError(f"a pass over {len(datums)} sequences failed: {error}") from error

    def _adapter(self, *, is_on: bool) -> contextlib.AbstractContextManager[None]:
        if is_on:
            return contextlib.nullcontext()
        if self._model.peft is None:
            raise TrainingError("all weights are trained: there is no adapter to switch off")
        return self._without_adapter()

    def _without_adapter(self) -> contextlib.AbstractContextManager[None]:
        assert self._model.peft is not None
        return self._model.peft.disable_adapter()

    def _sum_over(self, datums: Sequence[Datum], loss: Loss, with_gradient: bool) -> StepOutput:
        function = loss_function(loss)
        found_D = [unscored(datum) for datum in datums]
        total = divergence = 0.0
        mode = self._training.on(self._num_steps(), self._num_backwards) if with_gradient else contextlib.nullcontext()
        with mode, torch.set_grad_enabled(with_gradient):
            for stream in self._streams(datums, function):
                if isinstance(function, DistributionLoss):
                    assert isinstance(loss, Divergence)
                    teacher = self._taught(loss, stream, datums)
                    with self._model.attention.using(layout_of(self._model, stream)):
                        value, logprobs_S, more = stream_divergence(
                            self._model, stream, teacher, loss, function, with_gradient=with_gradient
                        )
                    divergence += more
                else:
                    with self._model.attention.using(layout_of(self._model, stream)):
                        value, logprobs_S = stream_loss(
                            self._model, stream, loss, function, with_gradient=with_gradient
                        )
                total += value
                scatter(found_D, stream, logprobs_S)
        self._num_backwards += with_gradient
        return StepOutput(total, found_D, {"divergence": divergence} if isinstance(loss, Divergence) else {})

    def _taught(self, loss: Divergence, stream: TokenStream, datums: Sequence[Datum]) -> Rows:
        """What the teacher makes of the scored positions of a stream."""
        teacher = loss.teacher
        serving = teacher._serving if isinstance(teacher, LocalBackend) else teacher  # noqa: SLF001 - one of ours
        if not isinstance(serving, Serving):
            raise TrainingError(
                f"a divergence over the whole vocabulary needs a teacher of this engine, not {type(teacher).__name__}"
            )
        with serving.lent(self._engine):
            return serving.rows(teacher_items(stream, datums))

    def _custom(self, datums: Sequence[Datum], loss: CustomLoss, with_gradient: bool) -> StepOutput:
        """Any function of the log-probabilities: one pass finds them, its derivative weighs a second one.

        The loss depends on the weights through the log-probabilities alone, so its gradient is that of the weighted
        sum with the weights -dloss/dlogp.
        """
        first = self._sum_over(datums, CrossEntropy(), with_gradient=False)
        inputs_D = [{k: torch.from_numpy(v.to_numpy()) for k, v in d.loss_fn_inputs.items()} for d in datums]
        with torch.enable_grad():
            logprobs_D = [torch.from_numpy(found.copy()).requires_grad_() for found in first.logprobs_D]
            value, metrics = loss.function(logprobs_D, inputs_D)
            if with_gradient:
                value.backward()
        if with_gradient:
            weighted = [
                datum_with_weights(datum, np.zeros(x.shape) if x.grad is None else -x.grad.numpy())
                for datum, x in zip(datums, logprobs_D, strict=True)
            ]
            self._sum_over(weighted, CrossEntropy(), with_gradient=True)
        return StepOutput(float(value.detach()), first.logprobs_D, dict(metrics))

    def _streams(self, datums: Sequence[Datum], function: LossFunction | DistributionLoss) -> Iterator[TokenStream]:
        joins = self._model.joins_segments
        for stream in lay_out(datums, function, self._settings.max_tokens(self._lora), joins=joins):
            if self._abandoned.is_set():
                raise TrainingError("the pass was abandoned")
            yield stream

    def _step(self, adam: AdamParams) -> Mapping[str, float]:
        if not self._num_backwards:
            raise TrainingError("optim_step was called with no gradient gathered")
        gradients = [gradient_of(parameter) for _, parameter in self._parameters]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if not bool(torch.isfinite(norm)):
            self._clear_gradients()
            raise TrainingError(f"the gradient's norm is {float(norm)}; the weights are left as they were")
        if adam.grad_clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(
                [parameter for _, parameter in self._parameters], adam.grad_clip_norm, norm, foreach=True
            )
        for group in self._optimizer.param_groups:
            group["lr"] = adam.learning_rate
            group["betas"] = (adam.beta1, adam.beta2)
            group["eps"] = adam.eps
            group["weight_decay"] = adam.weight_decay if group["decays"] else 0.0
        self._optimizer.step()
        self._model.precision.refresh()
        self._clear_gradients()
        return {"grad_norm": float(norm)}

    def _num_steps(self) -> int:
        """Optimizer steps taken, those before a resume included. Every weight has taken as many."""
        return next((int(state["step"]) for state in self._optimizer.state.values()), 0)

    def _clear_gradients(self) -> None:
        self._num_backwards = 0
        for _, parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)
