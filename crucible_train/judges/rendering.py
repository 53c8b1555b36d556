"""A comparison as a conversation of any chat format: it asks which answer is better, and is answered by one label.

    INSTRUCTIONS
    Conversation:
    > user: What is 2 + 2?
    Answer A:
    > 4
    Answer B:
    > 5
    Which answer is better?            -> A, B or Tie

Every line of what is judged stands behind ``> ``, so that no answer can pass for a heading, and two comparisons never
read alike. What comes first is what most comparisons share: the prompts of a pair, and of all pairs of a group, begin
alike as long as they can.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from crucible_train.errors import ConfigError, RenderError
from crucible_train.judges.comparisons import LABELS, Comparison, Label, shuffled
from crucible_train.renderers import Renderer, TrainOnWhat
from crucible_train.types import Message, ModelInput

INSTRUCTIONS = (
    "Compare two answers to the same conversation. Reply A if answer A is better, B if answer B is better, or Tie if "
    "they are equally good. Reply with that one word alone."
)
QUESTION = "Which answer is better?"
_QUOTE = "> "
Example = tuple[ModelInput, npt.NDArray[np.float32]]


class ComparisonRenderer:
    """Renders comparisons in a model's chat format.

    Args:
        renderer: the chat format.
        instructions: what the judge is told first.

    Raises:
        ConfigError: the format does not tell the labels apart by one token each.
    """

    def __init__(self, renderer: Renderer, instructions: str = INSTRUCTIONS) -> None:
        """Find the labels' tokens."""
        self._renderer, self._instructions = renderer, instructions
        self._lead, self.label_ids = self._labels()

    @property
    def renderer(self) -> Renderer:
        """The chat format."""
        return self._renderer

    def messages(self, prompt: Sequence[Message], a: Message, b: Message) -> tuple[Message, ...]:
        """The conversation that asks which of two answers is better.

        Raises:
            RenderError: a message holds what text cannot show.
        """
        return _question(self._instructions, prompt, a, b)

    def conversation(self, comparison: Comparison) -> tuple[Message, ...]:
        """The question and its answer, the label."""
        return conversation_of(comparison, self._instructions)

    def judging_prompt(self, prompt: Sequence[Message], a: Message, b: Message) -> ModelInput:
        """The ids after which the label's token stands.

        Raises:
            RenderError: the chat format cannot express it.
        """
        found = self._renderer.build_generation_prompt(self.messages(prompt, a, b))
        return found.append_ints(self._lead) if self._lead else found

    def supervised_examples(
        self, comparisons: Iterable[Comparison], seed: int, *, both_orders: bool = False
    ) -> list[Example]:
        """Examples that train the labels: ids and a weight for each, unshifted; only the label is trained.

        Args:
            comparisons: what to learn.
            seed: decides which comparisons are shown in the other order.
            both_orders: show each in both orders instead.
        """
        made: list[Example] = []
        for index, comparison in enumerate(comparisons):
            shown = shuffled(comparison, seed, index)
            orders = (shown, shown.swapped()) if both_orders else (shown,)
            made += [self._example(self.conversation(one)) for one in orders]
        return made

    def _example(self, conversation: Sequence[Message]) -> Example:
        *_, last = self._renderer.build_supervised_examples(conversation, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
        return last

    def _labels(self) -> tuple[list[int], dict[Label, int]]:
        """What the format writes between its prompt and a label, and each label's token."""
        shown = Comparison((Message("user", "?"),), Message("assistant", "1"), Message("assistant", "2"), "A")
        prompt = self._renderer.build_generation_prompt(self.messages(shown.prompt, shown.a, shown.b)).to_ints()
        asked = self.messages(shown.prompt, shown.a, shown.b)
        written = [self._example((*asked, Message("assistant", label)))[0].to_ints() for label in LABELS]
        if any(ids[: len(prompt)] != prompt for ids in written):
            raise ConfigError(f"renderer: {self._renderer.name} does not write an answer straight after its prompt")
        rests = [ids[len(prompt) :] for ids in written]
        num = next((i for i, tokens in enumerate(zip(*rests, strict=False)) if len(set(tokens)) > 1), None)
        tokens = [] if num is None else [rest[num] for rest in rests]
        if num is None or len(set(tokens)) != len(LABELS):
            raise ConfigError(
                f"renderer: {self._renderer.name}: {', '.join(LABELS)} do not begin with different tokens"
            )
        return rests[0][:num], dict(zip(LABELS, tokens, strict=True))


def conversation_of(comparison: Comparison, instructions: str = INSTRUCTIONS) -> tuple[Message, ...]:
    """What a judge is asked, and what it is to answer: the label.

    Raises:
        RenderError: a message holds what text cannot show.
    """
    asked = _question(instructions, comparison.prompt, comparison.a, comparison.b)
    return (*asked, Message("assistant", comparison.label))


def _question(instructions: str, prompt: Sequence[Message], a: Message, b: Message) -> tuple[Message, ...]:
    lines = [instructions, "Conversation:"]
    for message in prompt:
        lines += _quoted(f"{message.role}: {_shown(message)}")
    lines += ["Answer A:", *_quoted(_shown(a)), "Answer B:", *_quoted(_shown(b)), QUESTION]
    return (Message("user", "\n".join(lines)),)


def _quoted(text: str) -> list[str]:
    return [f"{_QUOTE}{line}" for line in text.split("\n")]


def _shown(message: Message) -> str:
    """The words of a message; its thinking is not judged.

    Raises:
        RenderError: it holds an image or calls a tool.
    """
    if message.tool_calls:
        raise RenderError(f"a comparison shows words alone, and this {message.role} message calls a tool")
    return message.text
