"""A model's answers to held-out prompts of conversations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from crucible_train.evaluation.answers import Question
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages.answers import AnswerPrompts
from crucible_train.stages.held_out import HeldOutRows


class AnswerRows(AnswerPrompts[SFTConfig]):
    """Answers the prompts of the first held-out conversations."""

    name = "answer_rows"

    def questions(self, inputs: Mapping[str, Path]) -> Sequence[Question]:
        """Those that end with an assistant's answer."""
        return HeldOutRows(self.config, inputs, self.config.win_rate.num_prompts).questions
