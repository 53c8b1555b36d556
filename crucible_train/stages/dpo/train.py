"""Training, in a run directory that is its working place and its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import files, terminal, wiring
from crucible_train.data.rendering import TRAIN, VALIDATION
from crucible_train.loop.run import TrainingRun
from crucible_train.loop.training import TrainingResult
from crucible_train.ports import MetricsLogger, RunStatus, TrainingClient
from crucible_train.preference.measuring import measure, preference_metrics, write_measured
from crucible_train.recipes.dpo import DPOConfig, peak_rate, plan_of, train
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.stages import tracked
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_record
from crucible_train.stages.dpo.evaluate import MEASURED
from crucible_train.stages.dpo.reference import check_start, preference_set, reference_record
from crucible_train.stages.publishing import open_client, publish, what_is_trained
from crucible_train.stages.train import hardware_identity, start_identity
from crucible_train.types import ArtifactRef, Hardware


class TrainDPO(Stage[DPOConfig]):
    """Trains the model on rendered preferences."""

    name = "train_dpo"
    reads = (
        "seed",
        "model",
        "peft",
        "preference",
        "train",
        "eval",
        "engine.micro_batch_tokens",
        "engine.activation_checkpointing",
        "checkpoint.load_best_model_at_end",
    )
    uses = ("engine", "checkpoint", "report_to", "tracking", "data.renderer", "data.renderer_options")
    code = (
        "recipes.dpo",
        "preference",
        "loop",
        "data",
        "judges",
        "types",
        "seeds",
        "schedules",
        "renderers",
        "losses",
        "stages.chat_format",
        "stages.dpo",
        "stages.publishing",
        "adapters.torch_local",
    )
    libraries = ("torch", "transformers", "peft")

    def __init__(self, config: DPOConfig, hardware: Hardware, run_dir: Path) -> None:
        """Train on this hardware in this run directory."""
        super().__init__(config)
        self._whole_config = config
        self._hardware = hardware
        self._run_dir = run_dir

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device, precision and threads decide the bits of the output, and so does a checkpoint given by its path.

        What was measured ``before`` does not: its numbers follow from the model, the pairs and the hardware.
        """
        deciding = {name: ref for name, ref in inputs.items() if name != "before"}
        more = {"hardware": hardware_identity(self._hardware)} | start_identity(self.config)
        return super().identity(deciding) | more

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Train, and put the published weights, the metrics and the result into ``folder``."""
        config = self.config
        check_start(config, inputs)
        logger = wiring.metrics_logger(config.report_to, terminal.say)
        with_head, states = config.preference.is_reward_model, self._run_dir / "checkpoints"
        client = await open_client(config, inputs["model"], self._hardware, states, with_head=with_head)
        try:
            result = await self._train(client, logger, inputs)
        finally:
            await client.close()
        publish(self._run_dir, result, config, inputs["model"], folder)
        measured = self._run_dir / "eval" / MEASURED
        if measured.is_file():
            files.copy_file(measured, folder / MEASURED)

    async def _train(self, client: TrainingClient, logger: MetricsLogger, inputs: Mapping[str, Path]) -> TrainingResult:
        config, loss = self.config, self.config.preference.loss()
        pairs, held_out = (preference_set(inputs, part) for part in (TRAIN, VALIDATION))
        num_steps = plan_of(config, len(pairs)).num_steps

        def on_start(step: int) -> None:
            tracked.start(logger, self._whole_config, self._run_dir, num_steps, step)

        kept = {RECORD_FILE: renderer_record(config, inputs["model"], client.tokenizer()).to_bytes()}
        kept |= reference_record(inputs)
        run = TrainingRun(self._run_dir, client, logger, config.checkpoint, _report, on_start, kept)
        run.watch(wiring.machine_load())
        _describe(config, client, num_steps)
        before = files.read_json(inputs["before"] / "summary.json") if "before" in inputs else None
        first: dict[str, float] = before["metrics"] if before else {}

        async def evaluate(step: int) -> Mapping[str, float]:
            if not len(held_out):
                return {}
            found = await measure(client, held_out, loss, wiring.losses_by_preference)
            write_measured(self._run_dir / "eval" / MEASURED, step, found)
            return preference_metrics("eval", found)

        status: RunStatus = "failed"
        try:
            result = await train(config, client, pairs, evaluate, run, first)
            status = "done"
        finally:
            run.metrics.finish(status)
            logger.finish(status)
        return result


def _describe(config: DPOConfig, client: TrainingClient, num_steps: int) -> None:
    """Say what is about to be trained, and how far."""
    model = client.model_info()
    batch = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    terminal.field(
        "train",
        f"{what_is_trained(config, model)}; {config.preference.loss_type}, {num_steps} steps of {batch}, "
        f"peak rate {peak_rate(config, model.hidden_size):g}",
    )


def _report(line: str) -> None:
    terminal.field("run", line)
