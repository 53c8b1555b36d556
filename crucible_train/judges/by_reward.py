"""A model that gives each answer a number, judged by the Bradley-Terry probability that one is better.

    p(a better than b) = sigmoid(r(a) - r(b)),    score = 2 p - 1 = tanh((r(a) - r(b)) / 2)

Order plays no part, and there are no ties but of equal rewards.
"""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crucible_train.judges.verdicts import Belief, Judgement
from crucible_train.renderers import Renderer, TrainOnWhat
from crucible_train.types import Message, ModelInput

SCALAR_HEAD = "scalar_head.safetensors"
"""The file beside a model's weights that makes it a reward model: ``weight`` (X,)."""


@runtime_checkable
class RewardModel(Protocol):
    """Gives a number to each sequence, read at its last token."""

    async def compute_rewards(self, model_inputs: Sequence[ModelInput]) -> Sequence[float]:
        """What each is worth; only differences between answers to one prompt mean anything."""


def up_to_reward(tokens_T: npt.NDArray[np.int32], weights_T: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """The ids of a rendered answer up to the last that counts as a target: the end of its turn."""
    return tokens_T[: int(np.flatnonzero(weights_T)[-1]) + 1]


def reward_input(renderer: Renderer, prompt: Sequence[Message], answer: Message) -> ModelInput:
    """The ids at whose last one an answer's reward is read."""
    ids, weights_T = renderer.build_supervised_example((*prompt, answer), TrainOnWhat.LAST_ASSISTANT_MESSAGE)
    return ModelInput.from_ints(up_to_reward(ids.to_array(), weights_T))


class RewardJudge:
    """A ``Judge`` over a reward model, trained in the chat format ``renderer``; ``alone`` as in ``LabelJudge``."""

    def __init__(self, model: RewardModel, renderer: Renderer, *, alone: bool = True) -> None:
        """Ask nothing yet."""
        self._model, self._renderer = model, renderer
        self._turn = asyncio.Lock() if alone else None

    async def rewards(self, prompt: Sequence[Message], answers: Sequence[Message]) -> Sequence[float]:
        """What each answer to a prompt is worth."""
        inputs = [reward_input(self._renderer, prompt, answer) for answer in answers]
        async with self._turn or contextlib.nullcontext():
            return await self._model.compute_rewards(inputs)

    async def compare(self, prompt: Sequence[Message], a: Message, b: Message) -> float:
        """The score of ``a`` beside ``b``."""
        (found,) = await self.judge(prompt, [(a, b)])
        return found.score

    async def judge(self, prompt: Sequence[Message], pairs: Sequence[tuple[Message, Message]]) -> Sequence[Judgement]:
        """What it says of each pair; every answer is read once, in however many pairs it stands."""
        answers = list(dict.fromkeys(answer for pair in pairs for answer in pair))
        worth = dict(zip(answers, await self.rewards(prompt, answers), strict=True))
        beliefs = (Belief.of_score(math.tanh((worth[a] - worth[b]) / 2)) for a, b in pairs)
        return [Judgement(belief, belief) for belief in beliefs]
