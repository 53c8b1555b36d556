"""What ``--dry-run`` shows of a win rate: its stages, and what they will cost here."""

from collections.abc import Collection, Sequence
from typing import Any

from crucible_train import terminal
from crucible_train.config.run_config import JudgedConfig
from crucible_train.stages.answers import AnswerPrompts
from crucible_train.stages.chain import Chain
from crucible_train.stages.judging import judge_at_hand, judge_in_words
from crucible_train.stages.prepare_model import at_hand, external
from crucible_train.stages.win_rate import INPUTS, CompareAnswers
from crucible_train.types import Estimate, Hardware

_AT_ONCE = 64
_ANSWERING = ("answer before", "answer after")


def look_for_judge(chain: Chain, config: JudgedConfig) -> None:
    """Add the stage that finds the judge, where one is named.

    Raises:
        ModelError: there is no such file or folder.
    """
    given = config.win_rate
    if given.judge is None:
        return
    if given.judge_url is None:
        chain.model(config.model_copy(update={"model": given.judge}), at_hand(given.judge), "judge")
        return
    folder = judge_at_hand(given)
    if folder is not None:
        chain.refs["judge"] = external(folder)
    state = "to run: fetch its tokenizer" if folder is None else f"nothing to do: {judge_in_words(given)}"
    chain.states.append(("prepare judge", state))


def look_at_answers(
    chain: Chain, config: JudgedConfig, hardware: Hardware, answer: AnswerPrompts[Any], given: Sequence[str]
) -> list[str]:
    """Add the stages that give the win rate.

    Args:
        chain: the chain so far.
        config: the whole configuration.
        hardware: where it will run.
        answer: the stage that answers.
        given: which outputs the model before training answers from.

    Returns:
        Which of the outputs the package reads.
    """
    for name, inputs in zip(_ANSWERING, (given, [*given, "trained"]), strict=True):
        chain.stage(name, name.replace("answer", "answers").replace(" ", "_"), answer, inputs)
    judge = [] if config.win_rate.judge is None else ["judge"]
    chain.stage("win rate", "win_rate", CompareAnswers(config, hardware), [*INPUTS, *judge])
    return [*judge, "win_rate"]


def written_at_once(num_prompts: int) -> int:
    """How many answers an estimate takes to be written at once."""
    return min(num_prompts, _AT_ONCE)


def show_win_rate(config: JudgedConfig, num_prompts: int, found: Estimate, to_run: Collection[str]) -> float:
    """Say what is answered and who judges; how many seconds of writing the stages ``to_run`` may take."""
    rounds = -(-num_prompts // _AT_ONCE)
    num_models = sum(name in to_run for name in _ANSWERING)
    terminal.field(
        "win rate",
        f"{num_prompts} held-out prompts, answered by both models in up to {config.eval.max_new_tokens} tokens; "
        f"compared in both orders by {judge_in_words(config.win_rate)}",
    )
    return num_models * rounds * config.eval.max_new_tokens * found.write_step_s
