"""Training, in a run directory that is its working place and its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import terminal, wiring
from crucible_train.loop.run import TrainingRun
from crucible_train.loop.training import TrainingResult, peak_rate
from crucible_train.ports import MetricsLogger, RunStatus, TrainingClient
from crucible_train.recipes.distill import DistillConfig, Surroundings, train
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.rl.held_out import held_out_metrics, play_held_out
from crucible_train.stages import tracked
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_record
from crucible_train.stages.distill.evaluate import measured_as
from crucible_train.stages.distill.sources import sources
from crucible_train.stages.distill.teachers import Classroom, classroom
from crucible_train.stages.publishing import open_client, publish, what_is_trained
from crucible_train.stages.rl.evaluate import first_metrics, tell_failure
from crucible_train.stages.rl.problems import PROBLEM_CODE, PROBLEM_FIELDS, PROBLEM_LIBRARIES
from crucible_train.stages.train import hardware_identity, start_identity
from crucible_train.trace import Trace
from crucible_train.types import ArtifactRef, Hardware

TRACE = "trace.json"


class TrainDistill(Stage[DistillConfig]):
    """Trains the student on the lessons of its teachers."""

    name = "train_distill"
    reads = (
        *PROBLEM_FIELDS,
        "model",
        "teacher",
        "teachers",
        "lesson",
        "peft",
        "rollout",
        "schedule",
        "train",
        "eval",
        "engine.micro_batch_tokens",
        "engine.activation_checkpointing",
        "checkpoint.load_best_model_at_end",
    )
    uses = ("engine", "checkpoint", "report_to", "tracking")
    code = (
        *PROBLEM_CODE,
        "distill",
        "recipes.distill",
        "loop",
        "losses",
        "schedules",
        "stages.distill",
        "stages.publishing",
        "adapters.openai_compatible",
        "adapters.torch_local",
    )
    libraries = ("torch", "transformers", "peft", *PROBLEM_LIBRARIES)

    def __init__(self, config: DistillConfig, hardware: Hardware, run_dir: Path) -> None:
        """Train on this hardware in this run directory."""
        super().__init__(config)
        self._whole_config = config
        self._hardware = hardware
        self._run_dir = run_dir

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device, precision and threads decide the bits of the output, as does what is read from elsewhere.

        What was measured ``before`` does not: its numbers follow from the models, the problems and the hardware.
        """
        deciding = {name: ref for name, ref in inputs.items() if name != "before"}
        more = {"hardware": hardware_identity(self._hardware), "sources": sources(self.config)}
        return super().identity(deciding) | more | start_identity(self.config)

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Train, and put the published weights, the metrics and the result into ``folder``."""
        config = self.config
        logger = wiring.metrics_logger(config.report_to, terminal.say)
        client = await open_client(config, inputs["model"], self._hardware, self._run_dir / "checkpoints")
        try:
            async with classroom(config, client, inputs, self._hardware, self._run_dir / "unused") as room:
                result = await self._train(client, room, logger, inputs)
        finally:
            await client.close()
        publish(self._run_dir, result, config, inputs["model"], folder)

    async def _train(
        self, client: TrainingClient, room: Classroom, logger: MetricsLogger, inputs: Mapping[str, Path]
    ) -> TrainingResult:
        config, num_steps = self.config, self.config.train.max_steps
        watched = room.student.problems.held_out[: config.eval.num_step_problems]
        trace = Trace()

        def on_start(step: int) -> None:
            tracked.start(logger, self._whole_config, self._run_dir, num_steps, step)

        async def evaluate(_step: int) -> Mapping[str, float]:
            with trace.span("evaluate", "training"):
                sampler = client.sampling_client()
                played = await play_held_out(sampler, watched, measured_as(config), config.seed, tell_failure)
            return held_out_metrics([one.to_json() for one in played])

        around = Surroundings(room.student, room.teachers, evaluate, tell_failure, span=trace.span)
        kept = {RECORD_FILE: renderer_record(config, inputs["model"], client.tokenizer()).to_bytes()}
        run = TrainingRun(self._run_dir, client, logger, config.checkpoint, _report, on_start, kept)
        run.watch(wiring.machine_load())
        _describe(config, client, room)
        status: RunStatus = "failed"
        try:
            result = await train(config, client, around, run, first_metrics(inputs.get("before"), len(watched)))
            status = "done"
        finally:
            run.metrics.finish(status)
            logger.finish(status)
            trace.write(self._run_dir / TRACE)
        return result


def _describe(config: DistillConfig, client: TrainingClient, room: Classroom) -> None:
    """Say what is about to be trained, by whom, and how far."""
    model, train_config, num = client.model_info(), config.train, room.student.problems.num_train
    of = "problems drawn without end" if num is None else f"{num:,} problems"
    terminal.field(
        "train",
        f"{what_is_trained(config, model)}; {train_config.max_steps} steps of {train_config.groups_per_batch} x "
        f"{train_config.num_generations} answers to {of}, {config.lesson.objective}, "
        f"peak rate {peak_rate(train_config, config.peft, model.hidden_size):g}",
    )


def _report(line: str) -> None:
    terminal.field("run", line)
