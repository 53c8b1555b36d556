"""Measuring a model on held-out preferences."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import files, terminal, wiring
from crucible_train.data.rendering import VALIDATION
from crucible_train.preference.measuring import (
    Measured,
    measure,
    measure_reference,
    preference_metrics,
    read_measured,
)
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.stages.base import Stage
from crucible_train.stages.dpo.reference import check_rendered, preference_set
from crucible_train.stages.layout import RESULTS, SUMMARY
from crucible_train.stages.publishing import RESULT, open_client
from crucible_train.stages.train import hardware_identity
from crucible_train.types import ArtifactRef, Hardware

MEASURED = "held_out_preferences.json"


class EvaluateDPO(Stage[DPOConfig]):
    """Compares the completions of every held-out preference."""

    name = "evaluate_dpo"
    reads = ("model", "peft", "preference", "seed", "engine.micro_batch_tokens")
    uses = ("engine",)
    code = (
        "preference",
        "recipes.dpo",
        "data",
        "judges",
        "types",
        "losses",
        "stages.dpo.reference",
        "stages.publishing",
        "adapters.torch_local",
    )
    libraries = ("torch", "transformers", "peft")

    def __init__(self, config: DPOConfig, hardware: Hardware) -> None:
        """Measure on this hardware."""
        super().__init__(config)
        self._hardware = hardware

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device and precision decide the bits of the output."""
        return super().identity(inputs) | {"hardware": hardware_identity(self._hardware)}

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Measure the model before training, or, where ``trained`` is among the inputs, the trained one."""
        found = await self._found(inputs, folder)
        lines = [json.dumps(one.to_json()) + "\n" for one in found]
        files.write_text(folder / RESULTS, "".join(lines))
        files.write_json(
            folder / SUMMARY, {"metrics": preference_metrics("eval", found), "num_preferences": len(found)}
        )

    async def _found(self, inputs: Mapping[str, Path], folder: Path) -> list[Measured]:
        config, loss, trained = self.config, self.config.preference.loss(), inputs.get("trained")
        check_rendered(config, inputs["rendered"])
        held_out = preference_set(inputs, VALIDATION)
        if not len(held_out):
            return []
        if trained is None and held_out.references is not None:
            return measure_reference(held_out, loss, wiring.losses_by_preference)
        known = None if trained is None else _known(trained)
        if known is not None:
            return known
        with_head = config.preference.is_reward_model
        client = await open_client(
            config, inputs["model"], self._hardware, folder / "unused", trained, with_head=with_head
        )
        try:
            return await measure(client, held_out, loss, wiring.losses_by_preference)
        finally:
            await client.close()


def _known(trained: Path) -> list[Measured] | None:
    """What training measured of the weights it published, if it did."""
    return read_measured(trained / MEASURED, files.read_json(trained / RESULT)["published_step"])


def report(name: str, summary: Mapping[str, Any], *, is_cached: bool) -> None:
    """Say what was measured."""
    shown = "  ".join(f"{key.removeprefix('eval/')} {value:.4g}" for key, value in summary["metrics"].items())
    cached = " [cached]" if is_cached else ""
    terminal.field(name, f"{shown}  over {summary['num_preferences']} held-out preferences{cached}")
