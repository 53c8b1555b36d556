"""A model's answers to the prompts of held-out preferences."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from crucible_train import files
from crucible_train.data.preference_preparation import PAIRS
from crucible_train.data.preference_tables import Preferences, RenderedPreferences
from crucible_train.data.preparation import HELD_OUT
from crucible_train.data.rendering import VALIDATION
from crucible_train.evaluation.answers import Question
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.stages.answers import AnswerPrompts


class AnswerPreferences(AnswerPrompts[DPOConfig]):
    """Answers the first prompts of the held-out preferences."""

    name = "answer_preferences"

    def questions(self, inputs: Mapping[str, Path]) -> Sequence[Question]:
        """The first prompts that differ; rows that were set aside are not asked."""
        has_own_source = isinstance(self.config.data.eval_split, str)
        source = Preferences(inputs["conversations"] / (HELD_OUT if has_own_source else PAIRS))
        found: dict[str, Question] = {}
        for one in RenderedPreferences(inputs["rendered"] / VALIDATION):
            if len(found) >= self.config.win_rate.num_prompts:
                break
            preference = source[one.row]
            question = Question(one.row, preference.prompt, "", preference.tools)
            said = [message.to_dict() for message in preference.prompt]
            found.setdefault(files.sha256_json([said, [dict(tool) for tool in preference.tools]]), question)
        return list(found.values())
