"""What the win rate of any flow is made of: both models' answers, each found or written, and a judge's verdicts."""

from collections.abc import Mapping
from typing import Any

from crucible_train.config.run_config import JudgedConfig
from crucible_train.stages.answers import AnswerPrompts
from crucible_train.stages.base import Outcome, resolve
from crucible_train.stages.win_rate import CompareAnswers, report
from crucible_train.types import ArtifactRef, Hardware
from tasks.model import summary_of


async def compared(
    config: JudgedConfig, hardware: Hardware, answer: AnswerPrompts[Any], inputs: Mapping[str, ArtifactRef]
) -> Outcome:
    """How often a judge prefers the trained model's answers.

    Args:
        config: the whole configuration.
        hardware: where both stages run.
        answer: the stage that has a model answer.
        inputs: ``model``, ``conversations``, ``rendered``, ``trained`` and, where one is named, ``judge``.
    """
    given = {name: inputs[name] for name in ("model", "conversations", "rendered")}
    read = {
        "model": inputs["model"],
        "answers_before": (await resolve(answer, given, config.cache_dir)).ref,
        "answers_after": (await resolve(answer, given | {"trained": inputs["trained"]}, config.cache_dir)).ref,
        **{name: inputs[name] for name in ("judge",) if name in inputs},
    }
    outcome = await resolve(CompareAnswers(config, hardware), read, config.cache_dir)
    report(summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome
