"""The training port: the verbs every recipe is written in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crucible_train.ports.sampling import SamplingClient
from crucible_train.ports.tokenizer import Tokenizer
from crucible_train.types import AdamParams, ArtifactRef, Datum, Loss


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is being trained, and where.

    ``precision`` is that of the matrix products; ``adapter`` is ``lora`` or ``full``.
    """

    name: str
    num_params: int
    num_trainable_params: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    adapter: str
    precision: str
    device: str
    num_threads: int


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a forward (and backward) pass gives.

    Attributes:
        loss: the sum over tokens that the loss defines.
        logprobs_D: one float32 array a datum, of the shape of its targets, (N_d,) or (N_d, K): the log-probability of
            each target, 0 where its weight is 0.
        metrics: what the loss reports besides, by name.
    """

    loss: float
    logprobs_D: Sequence[npt.NDArray[np.float32]]
    metrics: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class TrainingClient(Protocol):
    """Trains one model.

    Invariants, which ``tests/contracts/test_training_port.py`` holds every adapter to:

    - Losses are sums over tokens; nothing is normalised here.
    - Gradients accumulate over ``forward_backward`` calls until ``optim_step``, which uses and clears them; splitting a
      batch over several calls changes nothing but rounding. ``forward`` leaves gradients alone.
    - Calls take effect in the order they are made; a caller may make the next before it has awaited the last.
    - ``sampling_client`` samples the current weights, or those of the base model, and is a teacher in ``Divergence``.
    - After ``load_state(await save_state(name))`` every later call gives the same bits as if nothing had happened.
    - A failed step raises ``TrainingError`` and leaves the weights as they were.
    """

    async def forward_backward(self, datums: Sequence[Datum], loss: Loss) -> StepOutput:
        """Add the gradient of ``loss`` over ``datums`` to what has been gathered."""

    async def forward(self, datums: Sequence[Datum], loss: Loss, *, with_adapter: bool = True) -> StepOutput:
        """Compute ``loss`` over ``datums`` without a gradient; without the adapter, as the base model would.

        Raises:
            TrainingError: it failed, or there is no adapter to switch off.
        """

    async def optim_step(self, adam: AdamParams) -> Mapping[str, float]:
        """Take one AdamW step with the gathered gradient and clear it. Reports ``grad_norm``, before clipping."""

    async def save_state(
        self, name: str, *, attachments: Mapping[str, bytes] | None = None, with_optimizer: bool = True
    ) -> ArtifactRef:
        """Store weights, optimizer and ``attachments`` as one whole under ``name``; await it to know it is durable.

        The state is that of the moment of the call: training may go on while it is written.
        """

    async def load_state(self, ref: ArtifactRef) -> None:
        """Restore what ``save_state`` stored.

        Raises:
            CheckpointError: it is missing, damaged or of another model.
        """

    def sampling_client(self, *, with_adapter: bool = True) -> SamplingClient:
        """A client that samples the current weights; nothing it gives depends on what was sampled before.

        Without the adapter, the weights are those of the base model.

        Raises:
            TrainingError: there is no adapter to switch off.
        """

    def model_info(self) -> ModelInfo:
        """What is being trained."""

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    async def close(self) -> None:
        """Finish what was asked for and free the model."""
