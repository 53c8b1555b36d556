"""Asking anything that compares two answers, in both orders."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable

from crucible_train.judges.verdicts import Belief, Judge, Judgement, PreferenceModel
from crucible_train.types import Message

Asked = PreferenceModel | Callable[[Sequence[Message], Message, Message], float | Awaitable[float]]
"""What can be asked: a preference model, or what its ``compare`` is, as a function that may also answer at once."""


async def judged(
    asked: Asked, prompt: Sequence[Message], pairs: Sequence[tuple[Message, Message]]
) -> Sequence[Judgement]:
    """What is said of each pair of answers to a prompt; all are asked at once.

    Raises:
        ValueError: a comparison is not between -1 and 1.
    """
    if isinstance(asked, Judge):
        return await asked.judge(prompt, pairs)
    function = asked.compare if isinstance(asked, PreferenceModel) else asked
    in_both = [order for a, b in pairs for order in ((a, b), (b, a))]
    found = await asyncio.gather(*(_ask(function, prompt, a, b) for a, b in in_both))
    return [Judgement(first, second.of_swapped()) for first, second in zip(found[0::2], found[1::2], strict=True)]


async def judged_alone(asked: Asked, prompt: Sequence[Message], a: Message, b: Message) -> Judgement:
    """What is said of one pair."""
    (found,) = await judged(asked, prompt, [(a, b)])
    return found


async def _ask(
    function: Callable[[Sequence[Message], Message, Message], float | Awaitable[float]],
    prompt: Sequence[Message],
    a: Message,
    b: Message,
) -> Belief:
    said = function(prompt, a, b)
    return Belief.of_score(float(await said if isawaitable(said) else said))
