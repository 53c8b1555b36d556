"""Training, in a run directory that is its working place and its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import checkpoints, files, terminal, wiring
from crucible_train.config.run_config import RunConfig
from crucible_train.data.rendering import TRAIN
from crucible_train.data.tables import Examples
from crucible_train.evaluation.answers import answer_metrics
from crucible_train.evaluation.nll import nll_metrics, read_measured, write_measured
from crucible_train.loop.run import TrainingRun
from crucible_train.loop.training import TrainingResult, peak_rate
from crucible_train.ports import MetricsLogger, ModelInfo, TrainingClient
from crucible_train.recipes.sft import SFTConfig, plan_of, train
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.stages import tracked
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_record
from crucible_train.stages.held_out import HeldOutRows
from crucible_train.stages.publishing import open_client, publish, what_is_trained
from crucible_train.types import ArtifactRef, Hardware

MEASURED = "held_out_nll.json"
_ANSWER_FIELDS = ("max_new_tokens", "temperature", "top_p", "scorers")


class Train(Stage[SFTConfig]):
    """Fine-tunes the model on the rendered examples."""

    name = "train"
    reads = (
        "seed",
        "model",
        "peft",
        "train",
        "eval.eval_steps",
        "eval.num_step_samples",
        "eval.metric_for_best_model",
        "eval.greater_is_better",
        "eval.early_stopping_patience",
        "eval.early_stopping_threshold",
        "engine.micro_batch_tokens",
        "engine.activation_checkpointing",
        "checkpoint.load_best_model_at_end",
    )
    uses = (
        "engine",
        "checkpoint",
        "report_to",
        "tracking",
        "data.eval_split",
        "data.renderer",
        "data.renderer_options",
        *(f"eval.{name}" for name in _ANSWER_FIELDS),
    )
    code = (
        "recipes.sft",
        "loop",
        "data",
        "types",
        "seeds",
        "schedules",
        "evaluation",
        "renderers",
        "stages.chat_format",
        "stages.held_out",
        "losses",
        "stages.publishing",
        "adapters.torch_local",
    )
    libraries = ("torch", "transformers", "peft")

    def __init__(self, config: SFTConfig, hardware: Hardware, run_dir: Path) -> None:
        """Train on this hardware in this run directory."""
        super().__init__(config)
        self._whole_config = config
        self._hardware = hardware
        self._run_dir = run_dir

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device, precision and threads decide the bits of the output, and so does a checkpoint given by its path.

        What was measured ``before`` does not: its numbers follow from the model, the rows and the hardware. How answers
        are written and scored does only where some are asked for while training.
        """
        deciding = {name: ref for name, ref in inputs.items() if name != "before"}
        identity = super().identity(deciding) | {"hardware": hardware_identity(self._hardware)}
        identity |= start_identity(self.config)
        if self.config.eval.num_step_samples:
            identity["answers"] = self.config.eval.model_dump(mode="json", include=set(_ANSWER_FIELDS))
        return identity

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Train, and put the published weights, the metrics and the result into ``folder``."""
        config = self.config
        logger = wiring.metrics_logger(config.report_to, terminal.say)

        client = await open_client(config, inputs["model"], self._hardware, self._run_dir / "checkpoints")
        try:
            result = await self._train(client, logger, inputs)
        finally:
            await client.close()
        self._publish(inputs["model"], result, folder)

    async def _train(self, client: TrainingClient, logger: MetricsLogger, inputs: Mapping[str, Path]) -> TrainingResult:
        config = self.config
        examples = Examples(inputs["rendered"] / TRAIN)
        held_out = HeldOutRows(config, inputs, config.eval.num_step_samples)
        num_steps = plan_of(config, len(examples)).num_steps

        def on_start(step: int) -> None:
            tracked.start(logger, self._whole_config, self._run_dir, num_steps, step)

        kept = {RECORD_FILE: renderer_record(config, inputs["model"], client.tokenizer()).to_bytes()}
        run = TrainingRun(self._run_dir, client, logger, config.checkpoint, _report, on_start, kept)
        run.watch(wiring.machine_load(_report))
        _describe(config, client.model_info(), num_steps)
        base = files.read_json(inputs["before"] / "summary.json") if "before" in inputs else None
        first = {k: v for k, v in base["metrics"].items() if k in _NLL_METRICS} if base else {}

        async def evaluate(step: int) -> Mapping[str, float]:
            if not held_out.examples:
                return {}
            found = await held_out.nll(client)
            write_measured(self._run_dir / "eval" / MEASURED, step, found)
            return nll_metrics(found) | answer_metrics(await held_out.answers(client))

        with tracked.ended(run.metrics, logger):
            result = await train(config, client, examples, evaluate, run, first)  # type: ignore[arg-type]
        return result

    def _publish(self, model_dir: Path, result: TrainingResult, folder: Path) -> None:
        publish(self._run_dir, result, self.config, model_dir, folder)
        found = read_measured(self._run_dir / "eval" / MEASURED, result.published_step)
        if found is not None:
            write_measured(folder / MEASURED, result.published_step, found)


def start_identity(config: RunConfig) -> dict[str, str]:
    """What of a checkpoint to start from decides a result: its content, where it is given by its path."""
    start = config.checkpoint.resume_from_checkpoint
    if start in ("auto", "never"):
        return {}
    manifest = Path(start).expanduser() / checkpoints.MANIFEST
    return {"start": files.sha256_file(manifest) if manifest.is_file() else start}


def hardware_identity(hardware: Hardware) -> dict[str, Any]:
    """What of the hardware decides the bits of a result."""
    return {"device": hardware.device, "precision": hardware.precision, "num_threads": hardware.num_threads}


_NLL_METRICS = ("eval/nll", "eval/perplexity", "eval/bits_per_byte")


def _describe(config: SFTConfig, model: ModelInfo, num_steps: int) -> None:
    """Say what is about to be trained, and how far."""
    batch = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    terminal.field(
        "train",
        f"{what_is_trained(config, model)}; {num_steps} steps of {batch}, "
        f"peak rate {peak_rate(config.train, config.peft, model.hidden_size):g}",
    )


def _report(line: str) -> None:
    terminal.field("run", line)
