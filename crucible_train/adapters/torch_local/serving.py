"""The sampling port over the engine: requests gather in an inbox, which the engine's thread serves as one batch.

What is asked before a call that may change the weights is answered before it: the call turns the inbox over.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from crucible_train.adapters.torch_local.divergence_head import Rows
from crucible_train.adapters.torch_local.inbox import Inbox
from crucible_train.adapters.torch_local.loading import EngineModel
from crucible_train.adapters.torch_local.sampler import Request, Sampler, SampleRequest
from crucible_train.adapters.torch_local.scoring import ScoreRequest
from crucible_train.adapters.torch_local.stream import Scored
from crucible_train.adapters.torch_local.teaching import teacher_rows
from crucible_train.adapters.torch_local.worker import Worker
from crucible_train.types import ModelInput, SamplerStats, SamplingParams, TokensWithLogprobs

Decode = Callable[[Sequence[int]], str]
Mode = Callable[[], AbstractContextManager[None]]


class Serving:
    """A sampling client of the engine's model."""

    def __init__(self, engine: Worker, model: EngineModel, decode: Decode, mode: Mode) -> None:
        """Serve a model in its engine's thread.

        Args:
            engine: the thread.
            model: what is sampled, with the weights it has at that moment.
            decode: gives the text of tokens, for stop texts.
            mode: what the model is to be in while it computes, such as without its adapter.
        """
        self._engine, self._model, self._mode = engine, model, mode
        self._sampler = Sampler(model, decode)
        self._inbox: Inbox[Request] = Inbox()

    async def sample(
        self, prompt: ModelInput, num_samples: int, params: SamplingParams
    ) -> Sequence[TokensWithLogprobs]:
        """Write ``num_samples`` continuations of ``prompt``, in one batch with whatever else waits."""
        tokens = self.checked(prompt, "a prompt")
        requests = [SampleRequest(tokens, index, params) for index in range(num_samples)]
        return await self._ask(requests)

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        """The log-probability of each token given those before it; None for the first."""
        (found,) = await self._ask([ScoreRequest(self.checked(model_input, "a sequence to score"))])
        return found

    async def top_logprobs(self, model_input: ModelInput, k: int) -> Sequence[Sequence[tuple[int, float]] | None]:
        """The ``k`` most likely tokens at each position given those before it, as (id, log-probability)."""
        if k < 1:
            raise ValueError(f"k must be 1 or more, not {k}")
        (found,) = await self._ask([ScoreRequest(self.checked(model_input, "a sequence to score"), k)])
        return found

    @property
    def sampler(self) -> Sampler:
        """What writes and reads."""
        return self._sampler

    def stats(self) -> SamplerStats:
        """What sampling has cost so far."""
        return self._sampler.stats

    def turn_over(self) -> None:
        """Let nothing join what was asked so far."""
        self._serve_waiting()
        self._inbox.close()
        self._inbox = Inbox()

    def forget(self) -> None:
        """Drop what is known of sequences; in the engine's thread."""
        self._sampler.forget()

    def rows(self, items: Sequence[Scored]) -> Rows:
        """Hidden states of scored positions, without a gradient; in the engine's thread, or where it is lent."""
        with self._mode():
            return teacher_rows(self._model, items)

    @contextmanager
    def lent(self, to: Worker) -> Iterator[None]:
        """Let the thread of another engine use this model: its own waits meanwhile, once what it was given is done.

        A second thread that computes would get processor threads of its own, more than there are cores.
        """
        if to is self._engine:
            yield
            return
        begun, ended = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            ended.wait()

        self._engine.submit(wait)
        begun.wait()
        try:
            yield
        finally:
            ended.set()

    def checked(self, given: ModelInput, name: str) -> np.ndarray:
        """The tokens of a sequence.

        Raises:
            ValueError: there are none, or one is not of the vocabulary.
        """
        tokens, vocab_size = given.to_array(), self._model.head.compute.shape[0]
        if not tokens.size:
            raise ValueError(f"{name} needs at least one token")
        if int(tokens.max()) >= vocab_size:
            raise ValueError(f"{name} holds token id {tokens.max()}, which is out of range: there are {vocab_size}")
        return tokens

    async def _ask(self, requests: Sequence[Request]) -> list[Any]:
        """Have requests served, with whatever else is asked for before weights may change."""
        if not self._inbox.put(requests):
            self._inbox = Inbox()  # the last one was served to its end
            self._inbox.put(requests)
        try:
            await asyncio.sleep(0)  # let the other callers of this moment join
            self._serve_waiting()
            return [await asyncio.wrap_future(request.future) for request in requests]
        except BaseException:  # whoever leaves wants none of the rest
            for request in requests:
                request.future.cancel()
            raise

    def _serve_waiting(self) -> None:
        """Have the inbox served, unless it is."""
        if self._inbox and not self._inbox.is_served:
            self._engine.submit(self._serve, self._inbox)
            self._inbox.is_served = True

    def _serve(self, inbox: Inbox[Request]) -> None:
        with self._mode():
            self._sampler.serve(inbox)
