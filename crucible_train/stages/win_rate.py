"""The trained model's answers beside those of the model before it, compared by a judge."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import files, terminal
from crucible_train.config.run_config import JudgedConfig
from crucible_train.evaluation.win_rate import Match, compare_answers, win_rate
from crucible_train.renderers import FastTokenizer
from crucible_train.report.win_rate import in_a_line, of_the_judge
from crucible_train.stages.answers import read_answers
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_of
from crucible_train.stages.judging import OpenedJudge, judge_in_words
from crucible_train.stages.layout import RESULTS, SUMMARY
from crucible_train.stages.train import hardware_identity
from crucible_train.types import ArtifactRef, Hardware

INPUTS = ("model", "answers_before", "answers_after")
"""What is compared; beside them ``judge``, where one is named."""


class CompareAnswers(Stage[JudgedConfig]):
    """Has a judge compare both models' answers, each pair in both orders."""

    name = "win_rate"
    reads = (
        "seed",
        "model",
        "data.renderer",
        "data.renderer_options",
        "win_rate.judge",
        "win_rate.judge_renderer",
        "win_rate.judge_url",
        "win_rate.judge_served_name",
    )
    uses = ("engine", "win_rate")
    code = (
        "evaluation",
        "judges",
        "renderers",
        "types",
        "seeds",
        "config.judge",
        "config.server",
        "stages.answers",
        "stages.chat_format",
        "stages.judging",
        "adapters.torch_local",
        "adapters.openai_compatible",
    )
    libraries = ("torch", "transformers", "peft")

    def __init__(self, config: JudgedConfig, hardware: Hardware) -> None:
        """Judge on this hardware."""
        super().__init__(config)
        self._hardware = hardware

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device and precision decide the bits of the output."""
        return super().identity(inputs) | {"hardware": hardware_identity(self._hardware)}

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Compare what the trained model answered with what the model before it did."""
        matches = await self._matches(inputs)
        files.write_text(folder / RESULTS, "".join(json.dumps(match.to_json()) + "\n" for match in matches))
        found = win_rate(matches, self.config.seed).to_json() if matches else {"num": 0, "metrics": {}}
        files.write_json(folder / SUMMARY, found | {"judge": judge_in_words(self.config.win_rate)})

    async def _matches(self, inputs: Mapping[str, Path]) -> list[Match]:
        config = self.config
        asked, before = read_answers(inputs["answers_before"])
        _, after = read_answers(inputs["answers_after"])
        if not asked:
            return []
        terminal.field("judging", f"{len(asked)} pairs of answers in both orders by {judge_in_words(config.win_rate)}")
        model_dir = inputs["model"]
        own = (model_dir, renderer_of(config, model_dir, FastTokenizer.from_folder(model_dir)))
        async with OpenedJudge(config.win_rate, own, config.engine, self._hardware, inputs.get("judge")) as judge:
            return await compare_answers(judge, asked, after, before)


def report(summary: Mapping[str, Any], *, is_cached: bool) -> None:
    """Say how the trained model did, and how far the judge can be believed."""
    cached = " [cached]" if is_cached else ""
    if not summary["num"]:
        terminal.field("win rate", f"no held-out prompt was there to be answered{cached}")
        return
    terminal.field("win rate", in_a_line(summary) + cached)
    terminal.field("judge", of_the_judge(summary))
