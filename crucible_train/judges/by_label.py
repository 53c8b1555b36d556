"""A model that is asked which answer is better, judged by the probability of the label it would write.

    p(label) = softmax over A, B, Tie of log p(token of label | question)

Nothing is sampled: the prompt is read once for all three labels.
"""

import asyncio
import contextlib
from collections.abc import Sequence

import numpy as np

from crucible_train.errors import ConfigError
from crucible_train.judges.rendering import ComparisonRenderer
from crucible_train.judges.verdicts import Belief, Judgement
from crucible_train.ports import NextTokenScorer, SamplingClient
from crucible_train.types import Message, ModelInput


class LabelJudge:
    """A ``Judge``: the labels' probabilities in both orders.

    Args:
        client: the model.
        renderer: how it is asked.
        alone: one call's pairs are scored at a time, so that the bits of a call depend on nothing that is asked beside
            it; for a model in this process, which gains nothing from more.
    """

    def __init__(self, client: SamplingClient, renderer: ComparisonRenderer, *, alone: bool = True) -> None:
        """Ask nothing yet."""
        self._client, self._renderer = client, renderer
        self._turn = asyncio.Lock() if alone else None

    async def compare(self, prompt: Sequence[Message], a: Message, b: Message) -> float:
        """The score of ``a`` beside ``b``, both orders asked."""
        (found,) = await self.judge(prompt, [(a, b)])
        return found.score

    async def judge(self, prompt: Sequence[Message], pairs: Sequence[tuple[Message, Message]]) -> Sequence[Judgement]:
        """What it says of each pair; all are asked at once, so that a model in this process reads what they share once.

        Raises:
            RenderError: a message cannot be shown.
            ConfigError: the model gives no log-probability to a label.
        """
        shown = [order for a, b in pairs for order in ((a, b), (b, a))]
        prompts = [self._renderer.judging_prompt(prompt, a, b) for a, b in shown]
        async with self._turn or contextlib.nullcontext():
            found = await asyncio.gather(*(self._belief(one) for one in prompts))
        return [Judgement(first, second.of_swapped()) for first, second in zip(found[0::2], found[1::2], strict=True)]

    async def _belief(self, prompt: ModelInput) -> Belief:
        labels = self._renderer.label_ids
        logprobs = np.array(await self._scored(prompt, list(labels.values())), dtype=np.float64)  # nan for None
        if not np.isfinite(logprobs).all():
            raise ConfigError(f"judge: the model gives the labels the log-probabilities {logprobs.tolist()}")
        shares = np.exp(logprobs - logprobs.max())
        by_label = dict(zip(labels, (shares / shares.sum()).tolist(), strict=True))
        return Belief(by_label["A"], by_label["B"], by_label["Tie"])

    async def _scored(self, prompt: ModelInput, tokens: Sequence[int]) -> Sequence[float | None]:
        """The log-probability of each token after a prompt."""
        if isinstance(self._client, NextTokenScorer):
            return await self._client.next_logprobs(prompt, tokens)
        scored = await asyncio.gather(*(self._client.compute_logprobs(prompt.append_ints([token])) for token in tokens))
        return [found[-1] for found in scored]
