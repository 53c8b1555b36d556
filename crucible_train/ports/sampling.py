"""The sampling port."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from crucible_train.types import ModelInput, SamplingParams, TokensWithLogprobs


@runtime_checkable
class SamplingClient(Protocol):
    """Samples from one model.

    Invariants, which ``tests/contracts/test_sampling_port.py`` holds every adapter to:

    - Temperature 0 gives the most likely token at each position, the lowest id among equals.
    - The same prompt, parameters and seed give the same tokens whatever else is being sampled.
    - The log-probabilities are the model's own at temperature 1, whatever the sampling parameters.
    - The stop token is part of the answer; nothing follows it.
    """

    async def sample(
        self, prompt: ModelInput, num_samples: int, params: SamplingParams
    ) -> Sequence[TokensWithLogprobs]:
        """Write ``num_samples`` continuations of ``prompt``."""

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        """The log-probability of each token given those before it; None for the first."""

    async def top_logprobs(self, model_input: ModelInput, k: int) -> Sequence[Sequence[tuple[int, float]] | None]:
        """The ``k`` most likely tokens at each position given those before it, as (id, log-probability).

        The most likely comes first. None for the first position.
        """


@runtime_checkable
class NextTokenScorer(Protocol):
    """What a sampling client may offer besides: scoring the next token alone, where a whole prompt costs more."""

    async def next_logprobs(self, prompt: ModelInput, tokens: Sequence[int]) -> Sequence[float]:
        """The log-probability of each of some tokens as the one after ``prompt``: ``compute_logprobs``'s last."""
