"""The sampling client: requests to a model of the service, and what of its answers is believed."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import tinker

from crucible_train.adapters.served import all_of, finished, is_unchanged, likeliest, prompt_ids, sample_seed
from crucible_train.adapters.tinker_service.faults import Faults
from crucible_train.errors import ConfigError, ServerError
from crucible_train.ports import Tokenizer
from crucible_train.types import ModelInput, SamplingParams, TokensWithLogprobs

T = TypeVar("T")

NAME = "the Tinker service"


class TinkerSampler:
    """Samples from a model of the service. ``tokenizer`` must be that model's own.

    The SDK bounds how many requests are under way, waits where the service asks for it, and tries again what another
    try may mend. Each sample is a request with a seed of its own, so that more samples begin with the fewer; the
    service keeps the prompt.
    """

    def __init__(self, client: tinker.SamplingClient, tokenizer: Tokenizer, faults: Faults, timeout_s: float) -> None:
        """Take a client of an open session.

        Args:
            client: the SDK's.
            tokenizer: that of its model.
            faults: says what is wrong where a request fails.
            timeout_s: seconds after which a request is given up.
        """
        self._client = client
        self._tokenizer = tokenizer
        self._faults = faults
        self._timeout_s = timeout_s

    def tokenizer(self) -> Tokenizer:
        """The tokenizer it was given."""
        return self._tokenizer

    async def sample(
        self, prompt: ModelInput, num_samples: int, params: SamplingParams
    ) -> Sequence[TokensWithLogprobs]:
        """Write ``num_samples`` continuations of ``prompt``.

        Raises:
            ConfigError: the service cannot sample so.
            InputError: the prompt cannot be put to it.
            ServerError: it gives no answer that can be used.
        """
        ids = prompt_ids(prompt, self._tokenizer)
        if params.min_p:
            raise ConfigError(f"min_p: {NAME} has no such filter; take 0")
        return await all_of(self._one(ids, params, index) for index in range(num_samples))

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        """The log-probability of each token given those before it; None for the first.

        Raises:
            ServerError: the service gives no answer that can be used.
        """
        ids = prompt_ids(model_input, self._tokenizer)
        return [None, *await self._scores(ids)] if len(ids) > 1 else [None]

    async def top_logprobs(self, model_input: ModelInput, k: int) -> Sequence[Sequence[tuple[int, float]] | None]:
        """The ``k`` most likely tokens at each position given those before it, as (id, log-probability).

        Raises:
            ServerError: the service gives no answer that can be used, or does not tell as many.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, not {k}")
        ids = prompt_ids(model_input, self._tokenizer)
        k = min(k, self._tokenizer.vocab_size)
        asked = self._client.sample(
            prompt=tinker.ModelInput.from_ints(ids),
            num_samples=1,
            sampling_params=tinker.SamplingParams(max_tokens=1),
            include_prompt_logprobs=True,
            topk_prompt_logprobs=k,
        )
        answer = await self._answered(asked)
        return likeliest(answer.topk_prompt_logprobs or [], len(ids), k, NAME)

    async def _one(self, ids: list[int], params: SamplingParams, index: int) -> TokensWithLogprobs:
        asked = self._client.sample(
            prompt=tinker.ModelInput.from_ints(ids),
            num_samples=1,
            sampling_params=_their_params(params, sample_seed(params, index)),
        )
        answer = await self._answered(asked)
        if len(answer.sequences) != 1:
            raise ServerError(f"{NAME} answered with {len(answer.sequences)} samples where 1 was asked for")
        (written,) = answer.sequences
        # whether they are those before temperature and filters is nowhere promised
        logprobs = written.logprobs if is_unchanged(params) else None
        if logprobs is not None and len(logprobs) != len(written.tokens):
            raise ServerError(f"{NAME} returned {len(written.tokens)} tokens but {len(logprobs)} log-probabilities")
        found = finished(list(written.tokens), logprobs, written.stop_reason, params, NAME, self._tokenizer)
        if found.logprobs is not None:
            return found
        scores = await self._scores([*ids, *found.tokens])
        return TokensWithLogprobs(found.tokens, tuple(scores[len(ids) - 1 :]), found.stop_reason)

    async def _scores(self, ids: list[int]) -> list[float]:
        """The log-probability of each token but the first."""
        found = await self._answered(self._client.compute_logprobs(tinker.ModelInput.from_ints(ids)))
        scores = [score for score in (found or [])[1:] if score is not None]
        if len(scores) != len(ids) - 1:
            raise ServerError(f"{NAME} did not give the log-probability of every token of a prompt")
        return scores

    async def _answered(self, asked: Awaitable[T]) -> T:
        """What the SDK's own thread comes to."""
        return await self._faults.told(self._in_time(asked))

    async def _in_time(self, answer: Awaitable[T]) -> T:
        async with asyncio.timeout(self._timeout_s):
            return await answer


def _their_params(params: SamplingParams, seed: int) -> tinker.SamplingParams:
    """As the SDK has them. It takes stop tokens or stop texts: where both are given, texts are cut off here."""
    stop: Any = list(params.stop_token_ids) or list(params.stop_texts) or None
    return tinker.SamplingParams(
        max_tokens=params.max_tokens,
        seed=seed,
        stop=stop,
        temperature=params.temperature,
        top_k=params.top_k or -1,
        top_p=params.top_p,
    )
