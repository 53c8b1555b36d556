"""What can be found wrong, before anything is run, with a win rate that is asked for."""

import os
from collections.abc import Iterator
from pathlib import Path

from crucible_train.config.judge import WinRateConfig
from crucible_train.config.run_config import JudgedConfig
from crucible_train.judges import ComparisonRenderer
from crucible_train.renderers import FastTokenizer
from crucible_train.stages import preflight
from crucible_train.stages.chat_format import renderer_of
from crucible_train.stages.judging import check_judge, judge_at_hand
from crucible_train.stages.prepare_model import BUILT_IN, at_hand, description_of, model_field

Problems = Iterator[str]


def prompts(asked: WinRateConfig, eval_split: float | str) -> Problems:
    """Whether there can be prompts to answer."""
    if asked.num_prompts and eval_split == 0:
        yield "win_rate.num_prompts: data.eval_split is 0, so there is no held-out prompt to answer"


def judge(config: JudgedConfig) -> Problems:
    """Whether the judge can be asked, as far as its files are here."""
    asked = config.win_rate
    if not asked.num_prompts:
        return
    key = asked.judge_api_key_env
    if key and not os.environ.get(key):
        yield f"win_rate.judge_api_key_env: the environment variable {key} is not set"
    if not preflight.is_renderer(asked.judge_renderer):
        yield f"win_rate.judge_renderer: {asked.judge_renderer!r} is unknown"
    elif not preflight.holds_secret(asked.judge or config.model):
        _check(config)
    if asked.judge_url is not None:
        yield from preflight.silence("win_rate.judge_url", asked.judge_url, "answers are judged, after training")


def _check(config: JudgedConfig) -> None:
    """See that the judge is there and can be asked.

    Raises:
        ConfigError: it has no words for a verdict.
        ModelError: there is no such file or folder.
    """
    name = config.win_rate.judge
    if name is None:
        folder = description_of(config.model, None if config.model == BUILT_IN else at_hand(config.model))
        if folder is not None and preflight.is_renderer(config.data.renderer):
            _check_own(config, folder)
        return
    with model_field("win_rate.judge"):
        folder = description_of(name, None if name == BUILT_IN else judge_at_hand(config.win_rate))
        if folder is not None:
            check_judge(config.win_rate, folder)


def _check_own(config: JudgedConfig, folder: Path) -> None:
    tokenizer = FastTokenizer.from_folder(folder)
    ComparisonRenderer(renderer_of(config, folder, tokenizer))
