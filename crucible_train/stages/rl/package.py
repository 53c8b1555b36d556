"""The published model, the report, chosen groups and the evaluation's records."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.metrics_file import METRICS_FILE, TIMINGS_FILE, read_metrics
from crucible_train.recipes.rl import RLConfig
from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.report.charts import png, reward_chart
from crucible_train.report.logtree import logtree_json, render_logtree
from crucible_train.report.rl_facts import RLFacts, gather
from crucible_train.report.rl_page import page
from crucible_train.report.rl_summary import model_card, summary
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_record
from crucible_train.stages.package import EVALUATION, PUBLISHED, REPORT, SUMMARY_PAGE
from crucible_train.stages.prepare_model import base_name
from crucible_train.stages.publishing import ADAPTER, MODEL
from crucible_train.stages.rl.evaluate import RESULTS, SUMMARY
from crucible_train.stages.rl.logged_groups import kept
from crucible_train.types import ArtifactRef, Hardware

REWARD_CURVE = "reward.png"
LOGTREE = "logtree.html"


class PackageRL(Stage[RLConfig]):
    """Puts together what a user takes away from a run."""

    name = "package_rl"
    reads = (
        "model",
        "env",
        "output_dir",
        "run_name",
        "seed",
        "data",
        "rollout",
        "algorithm",
        "schedule",
        "peft",
        "train",
        "engine",
        "eval",
        "checkpoint",
        "num_logged_groups",
    )
    code = ("report", "evaluation", "renderers", "config", "rl", "stages.chat_format", "stages.rl.logged_groups")
    libraries = ("matplotlib",)

    def __init__(self, config: RLConfig, hardware: Hardware, run_dir: Path) -> None:
        """Package the run of this directory, whose name is the run's id."""
        super().__init__(config)
        self._hardware = hardware
        self._run_dir = run_dir

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """The report names the run and the hardware."""
        return super().identity(inputs) | {"run_id": self._run_dir.name, "hardware": self._hardware.description}

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Lay everything out as the run directory has it."""
        config, title = self.config, self._run_dir.name
        tokenizer = FastTokenizer.from_folder(inputs["model"])
        record = renderer_record(config, inputs["model"], tokenizer)
        timings = read_metrics(self._run_dir, TIMINGS_FILE)
        facts = gather(config, inputs, self._hardware.description, title, record.name, timings)
        shutil.copytree(inputs["trained"] / (ADAPTER if config.peft.use_peft else MODEL), folder / PUBLISHED)
        tokenizer.to_folder(folder / PUBLISHED)
        files.write_bytes(folder / PUBLISHED / RECORD_FILE, record.to_bytes())
        files.write_text(folder / PUBLISHED / "README.md", model_card(facts, base_name(config.model)))
        write_evaluation(facts, inputs, folder / EVALUATION)
        groups = list(kept(inputs["trained"]))
        files.write_text(folder / LOGTREE, render_logtree(groups, title))
        files.write_json(folder / "logtree.json", logtree_json(groups, title))
        files.write_text(folder / REPORT, page(facts, LOGTREE))
        files.write_text(folder / SUMMARY_PAGE, summary(facts) + "\n")
        files.write_bytes(folder / REWARD_CURVE, png(reward_chart(facts.metrics)))
        files.copy_file(inputs["trained"] / METRICS_FILE, folder / METRICS_FILE)


def write_evaluation(facts: RLFacts, inputs: Mapping[str, Path], folder: Path) -> None:
    """What was measured before and after, problem by problem and summed up."""
    lines = [
        json.dumps({"model": side, **json.loads(line)}) + "\n"
        for side in ("before", "after")
        for line in (inputs[side] / RESULTS).read_text(encoding="utf-8").splitlines()
    ]
    files.write_text(folder / RESULTS, "".join(lines))
    sides = {side: files.read_json(inputs[side] / SUMMARY) for side in ("before", "after")}
    files.write_json(
        folder / SUMMARY, sides | {"compared": [asdict(row) | {"verdict": row.verdict} for row in facts.compared]}
    )
