"""The next prompt of a conversation, as a continuation of the very ids that were sampled wherever that can be.

Rendered anew, a conversation may have other ids than the model wrote: the same words can be cut into tokens in several
ways. A prompt that goes on from the sampled ids keeps the episode one sequence, which is trained and cached as such.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crucible_train.errors import RenderError
from crucible_train.renderers import Renderer, TrainOnWhat
from crucible_train.types import Message, ModelInput

Tools = Sequence[Mapping[str, Any]] | None


def next_prompt(
    renderer: Renderer,
    messages: Sequence[Message],
    num_answered: int,
    written: ModelInput,
    tools: Tools = None,
) -> ModelInput:
    """The prompt of a conversation that goes on after an answer.

    Args:
        renderer: the chat format.
        messages: all until now; what follows the answer is not the model's.
        num_answered: how many of them there are up to the answer, which is the last of these.
        written: the ids that the answer was sampled after, and its own.
        tools: the declared tools.

    Raises:
        RenderError: the format cannot express the conversation.
    """
    rendered = renderer.build_generation_prompt(messages, tools)
    if not (rendered.is_text and written.is_text):
        return rendered
    ids, written_ids = rendered.to_ints(), written.to_ints()
    if ids[: len(written_ids)] == written_ids:
        return rendered
    start = _end_of_answer(renderer, messages[:num_answered], ids, tools)
    if start and ids[start - 1] == written_ids[-1]:  # the answer ended with the stop that history has, too
        return written.append_ints(ids[start:])
    return rendered


def _end_of_answer(renderer: Renderer, messages: Sequence[Message], ids: Sequence[int], tools: Tools) -> int:
    """Where the last message's answer ends in a longer conversation, its stop included; 0 where that is not sure."""
    if not renderer.extends(messages):
        return 0
    try:
        alone, weights = renderer.build_supervised_example(messages, TrainOnWhat.LAST_ASSISTANT_MESSAGE, tools)
    except RenderError:
        return 0
    end = int(weights.nonzero()[0][-1]) + 1
    return end if alone.to_ints()[:end] == list(ids[:end]) else 0
