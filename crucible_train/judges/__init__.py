"""Judges: which of two answers to a prompt is better, by a model or a function, always asked in both orders."""

from crucible_train.judges.both_orders import Asked, judged, judged_alone
from crucible_train.judges.by_label import LabelJudge
from crucible_train.judges.by_reward import SCALAR_HEAD, RewardJudge, RewardModel, reward_input, up_to_reward
from crucible_train.judges.comparisons import LABELS, Comparison, Label, comparison_of
from crucible_train.judges.rendering import ComparisonRenderer, conversation_of
from crucible_train.judges.verdicts import Belief, Judge, Judgement, PositionBias, PreferenceModel, position_bias

__all__ = [
    "LABELS",
    "SCALAR_HEAD",
    "Asked",
    "Belief",
    "Comparison",
    "ComparisonRenderer",
    "Judge",
    "Judgement",
    "Label",
    "LabelJudge",
    "PositionBias",
    "PreferenceModel",
    "RewardJudge",
    "RewardModel",
    "comparison_of",
    "conversation_of",
    "judged",
    "judged_alone",
    "position_bias",
    "reward_input",
    "up_to_reward",
]
