"""Measuring a model on held-out problems."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import files, terminal
from crucible_train.recipes.rl import RLConfig
from crucible_train.rl.held_out import held_out_metrics, play_held_out
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.stages.base import Stage
from crucible_train.stages.layout import RESULTS, SUMMARY
from crucible_train.stages.publishing import open_client
from crucible_train.stages.rl.problems import (
    PROBLEM_CODE,
    PROBLEM_FIELDS,
    PROBLEM_LIBRARIES,
    described,
    opened,
    sources,
)
from crucible_train.stages.train import hardware_identity
from crucible_train.types import ArtifactRef, Hardware

_OWN_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


class EvaluateRL(Stage[RLConfig]):
    """Plays every held-out problem once."""

    name = "evaluate_rl"
    reads = (
        *PROBLEM_FIELDS,
        "model",
        "peft",
        *(f"rollout.{name}" for name in RolloutConfig.model_fields if name not in _OWN_SAMPLING),
        "eval.temperature",
    )
    uses = ("engine",)
    code = (*PROBLEM_CODE, "stages.rl.problems", "stages.publishing", "adapters.torch_local")
    libraries = ("torch", "transformers", "peft", *PROBLEM_LIBRARIES)

    def __init__(self, config: RLConfig, hardware: Hardware) -> None:
        """Measure on this hardware."""
        super().__init__(config)
        self._hardware = hardware

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device and precision decide the bits of the output, and so does what the environment reads."""
        more = {"hardware": hardware_identity(self._hardware), "sources": sources(self.config)}
        return super().identity(inputs) | more

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Measure the base model, or, where ``trained`` is among the inputs, the trained one."""
        config = self.config
        client = await open_client(config, inputs["model"], self._hardware, folder / "unused", inputs.get("trained"))
        try:
            async with opened(config, inputs["model"], client.tokenizer(), self._hardware) as problems:
                terminal.field("playing", f"{len(problems.held_out)} held-out problems")
                about = described(config, problems)
                played = await play_held_out(
                    client.sampling_client(), problems.held_out, measured_as(config), config.seed, tell_failure
                )
        finally:
            await client.close()
        rows = [one.to_json() for one in played]
        files.write_text(folder / RESULTS, "".join(json.dumps(row) + "\n" for row in rows))
        summary = {"metrics": held_out_metrics(rows), "num_problems": len(rows), "problems": about}
        files.write_json(folder / SUMMARY, summary)


def measured_as(config: RLConfig) -> RolloutConfig:
    """How held-out problems are played: at the temperature of the evaluation, from the whole distribution."""
    own = (config.eval.temperature, 1.0, 0, 0.0)
    return config.rollout.model_copy(update=dict(zip(_OWN_SAMPLING, own, strict=True)))


def tell_failure(problem: str, error: str) -> None:
    """Say that an episode failed."""
    terminal.field("failed", f"{problem}: {error}")


def report(name: str, summary: Mapping[str, Any], *, is_cached: bool) -> None:
    """Say what was measured."""
    shown = "  ".join(f"{key.removeprefix('eval/')} {value:.4g}" for key, value in summary["metrics"].items())
    cached = " [cached]" if is_cached else ""
    terminal.field(name, f"{shown}  over {summary['num_problems']} held-out problems{cached}")


def first_metrics(before: Path | None, num_watched: int) -> dict[str, float]:
    """What the model before training got on the problems that are played while it trains."""
    if before is None:
        return {}
    return held_out_metrics(files.read_json_lines(before / RESULTS)[:num_watched])
