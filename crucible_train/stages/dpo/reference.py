"""The log-probabilities of the model before training: a forward pass over everything, made once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import files, terminal
from crucible_train.data.preference_tables import RenderedPreferences
from crucible_train.data.preparation import SUMMARY
from crucible_train.data.rendering import TRAIN, VALIDATION
from crucible_train.errors import ArtifactError, CheckpointError
from crucible_train.preference.measuring import PreferenceSet
from crucible_train.preference.reference import ReferenceTable, computed, write_reference
from crucible_train.recipes.dpo import DPOConfig, check_paired
from crucible_train.stages.base import Stage
from crucible_train.stages.prepare_model import external
from crucible_train.stages.publishing import open_client
from crucible_train.stages.train import hardware_identity
from crucible_train.types import ArtifactRef, Hardware

REFERENCE = "reference.json"
"""Which model gave the log-probabilities, and to what."""
_PARTS = (TRAIN, VALIDATION)


class ReferencePass(Stage[DPOConfig]):
    """Lets the model before training score every completion.

    Where an adapter is trained it is the default one, freshly made and switched off: the model as it lies in its
    folder. Where all weights are, it is held as they are, so that both begin from the same bits in any precision.
    """

    name = "reference_logprobs"
    reads = ("model", "peft.use_peft", "engine.micro_batch_tokens")
    uses = ("engine", "preference.loss_type")
    code = (
        "preference.reference",
        "preference.datums",
        "data",
        "types",
        "losses",
        "stages.publishing",
        "adapters.torch_local",
    )
    libraries = ("torch", "transformers", "peft")

    def __init__(self, config: DPOConfig, hardware: Hardware) -> None:
        """Score on this hardware."""
        super().__init__(config)
        self._hardware = hardware

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device and precision decide the bits; of the loss, only whether mismatched completions are read."""
        more = {"hardware": hardware_identity(self._hardware), "mismatched": self.config.preference.needs_mismatched}
        return super().identity(inputs) | more

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Score what is trained and what is held out.

        Raises:
            ConfigError: a completion stands alone, and the loss compares two.
        """
        check_rendered(self.config, inputs["rendered"])
        client = await open_client(self.config, inputs["model"], self._hardware, folder / "unused")
        with_mismatched = self.config.preference.needs_mismatched
        num_preferences = 0
        try:
            for name in _PARTS:
                rendered = RenderedPreferences(inputs["rendered"] / name)
                rows = computed(
                    client,
                    rendered,  # type: ignore[arg-type]
                    with_mismatched=with_mismatched,
                    has_adapter=self.config.peft.use_peft,
                )
                num_preferences += write_reference(folder / name, [row async for row in rows])
        finally:
            await client.close()
        files.write_json(folder / REFERENCE, _identity(inputs) | {"mismatched": with_mismatched})
        files.write_json(folder / SUMMARY, {"num_preferences": num_preferences})


def check_rendered(config: DPOConfig, rendered: Path) -> None:
    """See, before a model is loaded, that what is trained and what is held out suits the loss.

    Raises:
        ConfigError: a completion stands alone, and the loss compares two.
    """
    for name in _PARTS:
        check_paired(config, RenderedPreferences(rendered / name))  # type: ignore[arg-type]


def _identity(inputs: Mapping[str, Path]) -> dict[str, str]:
    """The digests of the model and of what it scores."""
    scored = files.sha256_json([files.sha256_file(inputs["rendered"] / name) for name in _PARTS])
    return {"model_sha256": external(inputs["model"]).sha256, "rendered_sha256": scored}


def preference_set(inputs: Mapping[str, Path], part: str) -> PreferenceSet:
    """The preferences of a part, with what the reference gives them where that is among the inputs.

    Raises:
        ArtifactError: the reference is that of another model or of other preferences.
    """
    rendered = RenderedPreferences(inputs["rendered"] / part)
    if "reference" not in inputs:
        return PreferenceSet(rendered, None)  # type: ignore[arg-type]
    kept, found = files.read_json(inputs["reference"] / REFERENCE) or {}, _identity(inputs)
    differing = [name for name, digest in found.items() if kept.get(name) != digest]
    if differing:
        raise ArtifactError(f"{inputs['reference']}: it is of another {differing[0].removesuffix('_sha256')}")
    return PreferenceSet(rendered, ReferenceTable(inputs["reference"] / part))  # type: ignore[arg-type]


def reference_record(inputs: Mapping[str, Path]) -> dict[str, bytes]:
    """What a checkpoint keeps of the reference it was trained against."""
    return {REFERENCE: (inputs["reference"] / REFERENCE).read_bytes()} if "reference" in inputs else {}


def check_start(config: DPOConfig, inputs: Mapping[str, Path]) -> None:
    """See that a checkpoint of another run that is to be gone on from was trained against this reference.

    Raises:
        CheckpointError: it was trained against that of another model.
    """
    start = config.checkpoint.resume_from_checkpoint
    if start in ("auto", "never") or "reference" not in inputs:
        return
    theirs = files.read_json(Path(start).expanduser() / REFERENCE)
    ours = files.read_json(inputs["reference"] / REFERENCE)
    if theirs is not None and theirs["model_sha256"] != ours["model_sha256"]:
        raise CheckpointError(
            f"checkpoint.resume_from_checkpoint: {start}: its reference is another model than that of this run"
        )


def report(summary: Mapping[str, Any], *, is_cached: bool) -> None:
    """Say what was scored."""
    line = f"{summary['num_preferences']:,} preferences scored by the model before training"
    terminal.field("reference", line + (" [cached]" if is_cached else ""))
