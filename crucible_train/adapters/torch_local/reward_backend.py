"""A reward model: the engine with a scalar head on the last hidden state of a sequence.

    r = w . h_last,    loss = -sum over pairs of weight * log sigmoid(r_chosen - r_rejected)

The loss depends on the weights through the rewards alone, and the two sides of a pair need not stand in one stream: one
pass finds the rewards, the loss's derivative weighs those of a second one. Both drop the same activations.

Axes: D datums, P pairs, X hidden width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora, hidden_states
from crucible_train.adapters.torch_local.state import adamw
from crucible_train.adapters.torch_local.stream import Scored, TokenStream, micro_batches
from crucible_train.adapters.torch_local.teaching import layout_of
from crucible_train.errors import CheckpointError, CrucibleError, TrainingError
from crucible_train.judges import SCALAR_HEAD
from crucible_train.losses import bradley_terry
from crucible_train.ports import ModelInfo, StepOutput, Tokenizer
from crucible_train.seeds import fold
from crucible_train.types import ArtifactRef, BradleyTerry, Datum, Loss, ModelInput

_NAME = "scalar_head.weight"


class RewardBackend(LocalBackend):
    """Trains a scalar head, and the model below it, on pairs; a ``RewardModel``.

    ``StepOutput.logprobs_D`` of ``BradleyTerry`` holds each sequence's reward at its last position, 0 elsewhere.
    """

    def __init__(
        self,
        model: Path,
        tokenizer: Tokenizer,
        settings: EngineSettings,
        lora: Lora | None,
        adapter: Path | None = None,
        name: str = "",
    ) -> None:
        """Load the model and its head.

        Args:
            model: a transformers model folder.
            tokenizer: its tokenizer.
            settings: how to compute.
            lora: the adapter to train; None trains all weights.
            adapter: adapter weights to begin from.
            name: what the model is called in reports.

        A head that lies beside the adapter, or beside the model, is the one to begin from; without one it is drawn by
        the settings' seed.

        Raises:
            ModelError: the folder holds no model this engine computes.
            CheckpointError: the head is not of this model.
        """
        super().__init__(model, tokenizer, settings, lora, adapter, name)
        width = super().model_info().hidden_size
        draw = torch.Generator().manual_seed(fold(settings.seed, "scalar head"))
        weight_X = torch.randn(width, generator=draw) / math.sqrt(width + 1)
        self._head = nn.Parameter(weight_X.to(self._model.causal.device))
        folders = [folder for folder in (adapter, model) if folder is not None and (folder / SCALAR_HEAD).is_file()]
        if folders:
            self._head.data.copy_(self._read_head(folders[0]))
        self._parameters = [*self._parameters, (_NAME, self._head)]
        self._optimizer = adamw([parameter for _, parameter in self._parameters])

    async def forward_backward(self, datums: Sequence[Datum], loss: Loss) -> StepOutput:
        """Add the gradient of ``loss`` over ``datums`` to what has been gathered."""
        if isinstance(loss, BradleyTerry):
            return await self._compute(self._over_pairs, datums, True, True)
        return await super().forward_backward(datums, loss)

    async def forward(self, datums: Sequence[Datum], loss: Loss, *, with_adapter: bool = True) -> StepOutput:
        """Compute ``loss`` over ``datums`` without a gradient."""
        if isinstance(loss, BradleyTerry):
            return await self._compute(self._over_pairs, datums, False, with_adapter)
        return await super().forward(datums, loss, with_adapter=with_adapter)

    async def compute_rewards(self, model_inputs: Sequence[ModelInput]) -> Sequence[float]:
        """What each sequence is worth, read at its last token."""
        tokens_D = [self._serving.checked(one, "a sequence to judge").astype(np.int64) for one in model_inputs]
        found: np.ndarray = await self._compute(self._rewards, tokens_D)
        return [float(reward) for reward in found]

    async def save_state(
        self, name: str, *, attachments: Mapping[str, bytes] | None = None, with_optimizer: bool = True
    ) -> ArtifactRef:
        """Store weights, head, optimizer and ``attachments`` as one whole under ``name``."""
        kept = dict(attachments or {})
        # the engine's thread works in order: it copies the head right before the weights, then both are written
        copied = self._engine.submit(lambda: kept.update({SCALAR_HEAD: save({"weight": self._head.detach().cpu()})}))
        ref = await super().save_state(name, attachments=kept, with_optimizer=with_optimizer)
        copied.result()
        return ref

    def model_info(self) -> ModelInfo:
        """What is being trained, the head included."""
        info = super().model_info()
        return replace(info, num_params=info.num_params + self._head.numel())

    # In the engine's thread ------------------------------------------------------------------------------------------

    def _over_pairs(self, datums: Sequence[Datum], with_gradient: bool, with_adapter: bool) -> StepOutput:
        try:
            with self._adapter(is_on=with_adapter):
                return self._pairs(datums, with_gradient)
        except Exception as error:
            if with_gradient:
                self._clear_gradients()
            if isinstance(error, CrucibleError):
                raise
            raise TrainingError(f"a pass over {len(datums)} sequences failed: {error}") from error

    def _pairs(self, datums: Sequence[Datum], with_gradient: bool) -> StepOutput:
        if len(datums) % 2 or not datums or min(datum.num_tokens for datum in datums) < 1:
            raise ValueError("datums must come in pairs of at least one token: the chosen one, then the rejected one")
        tokens_D = [self._serving.checked(datum.model_input, "a sequence").astype(np.int64) for datum in datums]
        weights_P = torch.tensor([_weight(datum) for datum in datums[0::2]])
        purpose = (self._num_steps(), self._num_backwards)
        with self._training.on(*purpose) if with_gradient else nullcontext():
            rewards_D = torch.from_numpy(self._rewards(tokens_D)).requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            loss = (bradley_terry.per_pair(rewards_D[0::2], rewards_D[1::2]) * weights_P).sum()
        if with_gradient:
            (slopes_D,) = torch.autograd.grad(loss, rewards_D)
            with self._training.on(*purpose), torch.enable_grad():
                for stream, rewards_S in self._streamed(tokens_D):
                    (rewards_S * slopes_D[stream.datum_S].to(rewards_S.device)).sum().backward()
            self._num_backwards += 1
        margins_P = (rewards_D[0::2] - rewards_D[1::2]).detach()
        accuracy = (torch.sign(margins_P) + 1).mean() / 2
        found_D = [np.zeros(datum.num_tokens, np.float32) for datum in datums]
        for found_N, reward in zip(found_D, rewards_D.tolist(), strict=True):
            found_N[-1] = reward
        return StepOutput(
            float(loss.detach()), found_D, {"accuracy": float(accuracy), "margin": float(margins_P.mean())}
        )

    @torch.no_grad()
    def _rewards(self, tokens_D: Sequence[np.ndarray]) -> np.ndarray:
        found_D = np.zeros(len(tokens_D), np.float32)
        for stream, rewards_S in self._streamed(tokens_D):
            found_D[stream.datum_S] = rewards_S.cpu().numpy()
        return found_D

    def _streamed(self, tokens_D: Sequence[np.ndarray]) -> Iterator[tuple[TokenStream, Tensor]]:
        """Each stream, and the rewards of the sequences that end in it."""
        items = [
            Scored(index, tokens, np.array([tokens.size - 1]), tokens[-1:], np.ones(1, np.float32))
            for index, tokens in enumerate(tokens_D)
        ]
        is_joined, device = self._model.joins_segments, self._model.causal.device
        limit = self._settings.max_tokens(self._lora) if is_joined else 0
        for stream in micro_batches(items, limit, share=is_joined):
            if self._abandoned.is_set():
                raise TrainingError("the pass was abandoned")
            arrays = (stream.tokens_T, stream.positions_T, stream.rows_S)
            tokens_T, positions_T, rows_S = (torch.from_numpy(array).to(device) for array in arrays)
            with self._model.attention.using(layout_of(self._model, stream)):
                hidden_SX = hidden_states(self._model, tokens_T, positions_T)[rows_S]
                yield stream, hidden_SX.float() @ self._head

    @torch.no_grad()
    def _restore(self, folder: Path) -> None:
        weight_X = self._read_head(folder)  # before the weights: a state that lacks one changes nothing
        super()._restore(folder)
        self._head.copy_(weight_X)

    def _read_head(self, folder: Path) -> Tensor:
        path = folder / SCALAR_HEAD
        try:
            weight_X = load_file(path)["weight"]
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path}: not the scalar head of this model: {error}") from error
        if weight_X.shape != self._head.shape:
            shapes = f"{tuple(weight_X.shape)} in place of {tuple(self._head.shape)}"
            raise CheckpointError(f"{path}: not the scalar head of this model: {shapes}")
        return weight_X


def _weight(datum: Datum) -> float:
    """What a pair counts: the weight at the last position of its chosen datum, 1 where there are none."""
    given: Any = datum.loss_fn_inputs.get("weights")
    return 1.0 if given is None else float(given.to_numpy()[-1])
