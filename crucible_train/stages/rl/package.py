"""The published model, the report, chosen groups and the evaluation's records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.metrics_file import METRICS_FILE, TIMINGS_FILE, read_metrics
from crucible_train.recipes.rl import RLConfig
from crucible_train.renderers import FastTokenizer
from crucible_train.report.charts import png, reward_chart
from crucible_train.report.logtree import logtree_json, render_logtree
from crucible_train.report.rl_facts import gather
from crucible_train.report.rl_page import page
from crucible_train.report.rl_summary import model_card, summary
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_record
from crucible_train.stages.layout import EVALUATION, PUBLISHED, REPORT, SUMMARY_PAGE
from crucible_train.stages.packaging import lay_out_model, write_evaluation
from crucible_train.stages.prepare_model import base_name
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
    code = (
        "report",
        "evaluation",
        "renderers",
        "config",
        "rl",
        "stages.chat_format",
        "stages.packaging",
        "stages.rl.logged_groups",
    )
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
        card = model_card(facts, base_name(config.model))
        await lay_out_model(inputs, folder / PUBLISHED, tokenizer, record, card)
        write_evaluation(inputs, facts.compared, folder / EVALUATION)
        groups = list(kept(inputs["trained"]))
        files.write_text(folder / LOGTREE, render_logtree(groups, title))
        files.write_json(folder / "logtree.json", logtree_json(groups, title))
        files.write_text(folder / REPORT, page(facts, LOGTREE))
        files.write_text(folder / SUMMARY_PAGE, summary(facts) + "\n")
        files.write_bytes(folder / REWARD_CURVE, png(reward_chart(facts.metrics)))
        files.copy_file(inputs["trained"] / METRICS_FILE, folder / METRICS_FILE)
