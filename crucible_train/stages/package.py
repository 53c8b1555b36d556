"""The published model, the report and the evaluation's records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.data.preparation import QUARANTINE
from crucible_train.metrics_file import METRICS_FILE, TIMINGS_FILE, read_metrics
from crucible_train.recipes.sft import SFTConfig
from crucible_train.renderers import FastTokenizer
from crucible_train.report.charts import loss_chart, png
from crucible_train.report.facts import gather
from crucible_train.report.page import page
from crucible_train.report.summary import model_card, summary
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_record
from crucible_train.stages.layout import EVALUATION, LOSS_CURVE, PUBLISHED, REPORT, SUMMARY_PAGE
from crucible_train.stages.packaging import lay_out_model, write_evaluation
from crucible_train.stages.prepare_model import base_name
from crucible_train.types import ArtifactRef, Hardware


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
        "win_rate",
        "checkpoint",
    )
    code = (
        "report",
        "evaluation",
        "renderers",
        "config",
        "stages.chat_format",
        "stages.packaging",
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
        config, timings = self.config, read_metrics(self._run_dir, TIMINGS_FILE)
        facts = gather(config, inputs, self._hardware.description, self._run_dir.name, timings)
        tokenizer = FastTokenizer.from_folder(inputs["model"])
        record, card = renderer_record(config, inputs["model"], tokenizer), model_card(facts, base_name(config.model))
        await lay_out_model(inputs, folder / PUBLISHED, tokenizer, record, card, is_judge=facts.is_judge)
        write_evaluation(inputs, facts.compared, folder / EVALUATION)
        files.write_text(folder / REPORT, page(facts))
        files.write_text(folder / SUMMARY_PAGE, summary(facts) + "\n")
        files.write_bytes(folder / LOSS_CURVE, png(loss_chart(facts.metrics)))
        files.write_text(folder / QUARANTINE, "".join(files.canonical_json(row) + "\n" for row in facts.bad_rows))
        files.copy_file(inputs["trained"] / METRICS_FILE, folder / METRICS_FILE)
