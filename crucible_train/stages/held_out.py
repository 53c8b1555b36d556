"""The held-out rows of a run, as the stages measure a model on them."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from crucible_train.data.examples import Example
from crucible_train.data.preparation import CONVERSATIONS, HELD_OUT
from crucible_train.data.rendering import VALIDATION
from crucible_train.data.tables import Dialogues, Examples
from crucible_train.evaluation.answers import Answer, Question, answer, questions
from crucible_train.evaluation.nll import ExampleNll, measure_nll
from crucible_train.evaluation.scorers import choose_scorers
from crucible_train.ports import TrainingClient
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages.chat_format import renderer_of

_USUAL_SAMPLES = 8
_MIN_HELD_OUT = 10  # a rate over fewer says nothing, and writing takes a minute on two cores


def num_answered(num_samples: int | None, num_held_out: int) -> int:
    """How many held-out prompts are answered: as asked for, or by how many there are."""
    if num_samples is not None:
        return num_samples
    return _USUAL_SAMPLES if num_held_out >= _MIN_HELD_OUT else 0


class HeldOutRows:
    """Measured by how well a model predicts them, and by what it answers to the first prompts."""

    def __init__(self, config: SFTConfig, inputs: Mapping[str, Path], num_samples: int | None) -> None:
        """Read from the artifacts ``model``, ``conversations`` and ``rendered``."""
        self._config = config
        self._inputs = inputs
        self.examples: list[Example] = list(Examples(inputs["rendered"] / VALIDATION))
        self._num_samples = num_answered(num_samples, len(self.examples))

    @cached_property
    def questions(self) -> list[Question]:
        """The prompts of the first examples: rows that were set aside are not asked."""
        has_own_source = isinstance(self._config.data.eval_split, str)
        dialogues = Dialogues(self._inputs["conversations"] / (HELD_OUT if has_own_source else CONVERSATIONS))
        rows = dict.fromkeys(example.row for example in self.examples)
        return questions(dialogues, list(rows), self._num_samples)

    async def nll(self, client: TrainingClient) -> list[ExampleNll]:
        """How well the current weights predict each example."""
        return await measure_nll(client, self.examples)

    async def answers(self, client: TrainingClient) -> list[Answer]:
        """What the current weights answer, and how that scores."""
        if not self.questions:
            return []
        config, tokenizer = self._config, client.tokenizer()
        scorers = choose_scorers(config.eval.scorers, [question.reference for question in self.questions])
        renderer = renderer_of(config, self._inputs["model"], tokenizer)
        return await answer(client.sampling_client(), renderer, self.questions, scorers, config.eval, config.seed)
