"""Measuring a model on the held-out part: how well it predicts it, and what it answers."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crucible_train import files, terminal
from crucible_train.evaluation.answers import Answer, Question, answer_metrics
from crucible_train.evaluation.nll import ExampleNll, nll_metrics, read_measured
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages.base import Stage
from crucible_train.stages.held_out import HeldOutRows
from crucible_train.stages.layout import RESULTS, SUMMARY
from crucible_train.stages.publishing import RESULT, open_client
from crucible_train.stages.train import MEASURED, hardware_identity
from crucible_train.types import ArtifactRef, Hardware


class Evaluate(Stage[SFTConfig]):
    """Predicts every held-out example and answers the first held-out prompts."""

    name = "evaluate"
    reads = (
        "seed",
        "model",
        "peft",
        "data.eval_split",
        "data.renderer",
        "data.renderer_options",
        "eval.num_samples",
        "eval.max_new_tokens",
        "eval.temperature",
        "eval.top_p",
        "eval.scorers",
    )
    uses = ("engine",)
    code = (
        "evaluation",
        "data",
        "renderers",
        "types",
        "seeds",
        "stages.chat_format",
        "stages.held_out",
        "losses",
        "stages.publishing",
        "adapters.torch_local",
    )
    libraries = ("torch", "transformers", "peft")

    def __init__(self, config: SFTConfig, hardware: Hardware) -> None:
        """Measure on this hardware."""
        super().__init__(config)
        self._hardware = hardware

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device and precision decide the bits of the output."""
        return super().identity(inputs) | {"hardware": hardware_identity(self._hardware)}

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Measure the base model, or, where ``trained`` is among the inputs, the trained one."""
        config = self.config
        trained = inputs.get("trained")
        held_out = HeldOutRows(config, inputs, config.eval.num_samples)
        known = _known(trained) if trained is not None else None
        if not held_out.questions and (known is not None or not held_out.examples):
            _write(known or [], [], [], folder)
            return
        client = await open_client(config, inputs["model"], self._hardware, folder / "unused", trained)
        try:
            found = known if known is not None else await held_out.nll(client)
            _write(found, held_out.questions, await held_out.answers(client), folder)
        finally:
            await client.close()


def _known(trained: Path) -> list[ExampleNll] | None:
    """What training measured of the weights it published, if it did."""
    return read_measured(trained / MEASURED, files.read_json(trained / RESULT)["published_step"])


def _write(found: list[ExampleNll], asked: list[Question], answers: list[Answer], folder: Path) -> None:
    rows = _results(found, asked, answers)
    files.write_text(folder / RESULTS, "".join(json.dumps(row) + "\n" for row in rows))
    metrics = (nll_metrics(found) if found else {}) | answer_metrics(answers)
    files.write_json(folder / SUMMARY, {"metrics": metrics, "num_examples": len(found), "num_answers": len(answers)})


def _results(found: list[ExampleNll], asked: list[Question], answers: list[Answer]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"kind": "nll", **asdict(example)} for example in found]
    for question, given in zip(asked, answers, strict=True):
        rows.append({"kind": "answer", "prompt": question.text, "reference": question.reference, **asdict(given)})
    return rows


def report(name: str, summary: Mapping[str, Any], *, is_cached: bool) -> None:
    """Say what was measured."""
    shown = "  ".join(f"{key.removeprefix('eval/')} {value:.4g}" for key, value in summary["metrics"].items())
    terminal.field(name, shown + (" [cached]" if is_cached else ""))
