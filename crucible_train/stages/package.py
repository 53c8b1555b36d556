"""The published model, the report and the evaluation's records."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.metrics_file import METRICS_FILE, TIMINGS_FILE, read_metrics
from crucible_train.recipes.sft import SFTConfig
from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.report.charts import loss_chart, png
from crucible_train.report.facts import RunFacts, gather
from crucible_train.report.page import page
from crucible_train.report.summary import model_card, summary
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_record
from crucible_train.stages.prepare_model import base_name
from crucible_train.stages.publishing import ADAPTER, MODEL, whole_model
from crucible_train.types import ArtifactRef, Hardware

PUBLISHED = "model"
REPORT = "report.html"
SUMMARY_PAGE = "summary.md"
LOSS_CURVE = "loss.png"
EVALUATION = "eval"
QUARANTINE = "quarantine.jsonl"


class Package(Stage[SFTConfig]):
    """Puts together what a user takes away from a run."""

    name = "package"
    reads = (
        "model",
        "dataset",
        "output_dir",
        "run_name",
        "seed",
        "data",
        "peft",
        "train",
        "engine",
        "eval",
        "checkpoint",
    )
    code = (
        "report",
        "evaluation",
        "renderers",
        "config",
        "stages.chat_format",
        "stages.publishing",
        "adapters.torch_local.merging",
    )
    libraries = ("matplotlib", "torch", "transformers", "peft")

    def __init__(self, config: SFTConfig, hardware: Hardware, run_dir: Path) -> None:
        """Package the run of this directory, whose name is the run's id."""
        super().__init__(config)
        self._hardware = hardware
        self._run_dir = run_dir

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """The report names the run and the hardware."""
        return super().identity(inputs) | {"run_id": self._run_dir.name, "hardware": self._hardware.description}

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Lay everything out as the run directory has it."""
        timings = read_metrics(self._run_dir, TIMINGS_FILE)
        facts = gather(self.config, inputs, self._hardware.description, self._run_dir.name, timings)
        await _publish(self.config, facts, inputs, folder / PUBLISHED)
        _write_evaluation(facts, inputs, folder / EVALUATION)
        files.write_text(folder / REPORT, page(facts))
        files.write_text(folder / SUMMARY_PAGE, summary(facts) + "\n")
        files.write_bytes(folder / LOSS_CURVE, png(loss_chart(facts.metrics)))
        files.write_text(folder / QUARANTINE, "".join(files.canonical_json(row) + "\n" for row in facts.bad_rows))
        files.copy_file(inputs["trained"] / METRICS_FILE, folder / METRICS_FILE)


async def _publish(config: SFTConfig, facts: RunFacts, inputs: Mapping[str, Path], folder: Path) -> None:
    if facts.is_judge:  # whole: a judge is opened by its folder alone
        await whole_model(inputs["model"], inputs["trained"], folder)
    else:
        shutil.copytree(inputs["trained"] / (ADAPTER if config.peft.use_peft else MODEL), folder)
    tokenizer = FastTokenizer.from_folder(inputs["model"])
    tokenizer.to_folder(folder)
    files.write_bytes(folder / RECORD_FILE, renderer_record(config, inputs["model"], tokenizer).to_bytes())
    files.write_text(folder / "README.md", model_card(facts, base_name(config.model)))


def _write_evaluation(facts: RunFacts, inputs: Mapping[str, Path], folder: Path) -> None:
    lines = [
        json.dumps({"model": side, **json.loads(line)}) + "\n"
        for side in ("before", "after")
        for line in (inputs[side] / "results.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    files.write_text(folder / "results.jsonl", "".join(lines))
    sides = {side: files.read_json(inputs[side] / "summary.json") for side in ("before", "after")}
    files.write_json(
        folder / "summary.json",
        sides | {"compared": [asdict(row) | {"verdict": row.verdict} for row in facts.compared]},
    )
