"""Training, in a run directory that is its working place and its record."""

import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crucible_train import terminal, wiring
from crucible_train.config.sections import PeftConfig
from crucible_train.loop.run import Cadence, TrainingRun
from crucible_train.loop.training import TrainingResult
from crucible_train.metrics_file import read_metrics
from crucible_train.ports import MetricsLogger, TrainingClient
from crucible_train.recipes.rl import RLConfig, peak_rate, train
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.rl.batch import ScoredGroup
from crucible_train.rl.config import RLEvalConfig
from crucible_train.rl.held_out import held_out_metrics, play_held_out
from crucible_train.rl.problem_set import ProblemSet
from crucible_train.rl.update import Reference, Surroundings
from crucible_train.stages import tracked
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_record
from crucible_train.stages.publishing import open_client, publish, what_is_trained
from crucible_train.stages.rl import logged_groups
from crucible_train.stages.rl.evaluate import first_metrics, measured_as, tell_failure
from crucible_train.stages.rl.problems import PROBLEM_CODE, PROBLEM_FIELDS, PROBLEM_LIBRARIES, opened, sources
from crucible_train.stages.train import hardware_identity, start_identity
from crucible_train.trace import Trace
from crucible_train.types import ArtifactRef, CrossEntropy, Datum, Hardware

TRACE = "trace.json"


class TrainRL(Stage[RLConfig]):
    """Trains the model on its own answers."""

    name = "train_rl"
    reads = (
        *PROBLEM_FIELDS,
        "model",
        "peft",
        "rollout",
        "algorithm",
        "schedule",
        "train",
        *(f"eval.{name}" for name in RLEvalConfig.model_fields if name != "temperature"),
        "num_logged_groups",
        "engine.micro_batch_tokens",
        "engine.activation_checkpointing",
        "checkpoint.load_best_model_at_end",
    )
    uses = ("engine", "checkpoint", "report_to", "tracking", "eval.temperature")
    code = (
        *PROBLEM_CODE,
        "recipes.rl",
        "loop",
        "losses",
        "schedules",
        "stages.rl",
        "stages.publishing",
        "adapters.torch_local",
    )
    libraries = ("torch", "transformers", "peft", *PROBLEM_LIBRARIES)

    def __init__(self, config: RLConfig, hardware: Hardware, run_dir: Path) -> None:
        """Train on this hardware in this run directory."""
        super().__init__(config)
        self._whole_config = config
        self._hardware = hardware
        self._run_dir = run_dir

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device, precision and threads decide the bits of the output, as does what the environment reads.

        What was measured ``before`` does not: its numbers follow from the model, the problems and the hardware. The
        temperature of the evaluation does only where problems are played while training.
        """
        deciding = {name: ref for name, ref in inputs.items() if name != "before"}
        more: dict[str, Any] = {"hardware": hardware_identity(self._hardware), "sources": sources(self.config)}
        if self.config.eval.num_step_problems:
            more["temperature"] = self.config.eval.temperature
        return super().identity(deciding) | more | start_identity(self.config)

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Train, and put the published weights, the metrics, chosen groups and the result into ``folder``."""
        config = self.config
        logger = wiring.metrics_logger(config.report_to, terminal.say)
        client = await open_client(config, inputs["model"], self._hardware, self._run_dir / "checkpoints")
        try:
            async with (
                self._reference(client, inputs["model"]) as reference,
                opened(config, inputs["model"], client.tokenizer(), self._hardware) as problems,
            ):
                result = await self._train(client, problems, reference, logger, inputs)
        finally:
            await client.close()
        publish(self._run_dir, result, config, inputs["model"], folder)
        (self._run_dir / logged_groups.FOLDER).mkdir(exist_ok=True)
        shutil.copytree(self._run_dir / logged_groups.FOLDER, folder / logged_groups.FOLDER)

    async def _train(
        self,
        client: TrainingClient,
        problems: ProblemSet,
        reference: Reference | None,
        logger: MetricsLogger,
        inputs: Mapping[str, Path],
    ) -> TrainingResult:
        config, num_steps = self.config, self.config.train.max_steps
        watched = problems.held_out[: config.eval.num_step_problems]
        trace = Trace()

        def on_start(step: int) -> None:
            tracked.start(logger, self._whole_config, self._run_dir, num_steps, step)

        async def evaluate(_step: int) -> Mapping[str, float]:
            with trace.span("evaluate", "training"):
                played = await play_held_out(
                    client.sampling_client(), watched, measured_as(config), config.seed, tell_failure
                )
            return held_out_metrics([one.to_json() for one in played])

        is_logged = Cadence.of(config.eval.eval_steps, num_steps)

        def show(step: int, groups: Sequence[ScoredGroup]) -> None:
            if config.num_logged_groups and (step == 1 or is_logged.is_due(step)):
                telling_first = sorted(groups, key=lambda group: not group.is_trained)
                logged_groups.keep(self._run_dir, step, telling_first[: config.num_logged_groups])

        around = Surroundings(evaluate, reference, tell_failure, show, trace.span)
        kept = {RECORD_FILE: renderer_record(config, inputs["model"], client.tokenizer()).to_bytes()}
        run = TrainingRun(self._run_dir, client, logger, config.checkpoint, _report, on_start, kept)
        run.watch(wiring.machine_load(_report))
        _describe(config, client, problems.num_train)
        try:
            with tracked.ended(run.metrics, logger):
                first = first_metrics(inputs.get("before"), len(watched))
                result = await train(config, client, problems, around, run, first)
        finally:
            trace.write(self._run_dir / TRACE)
        _say_if_nothing_was_learnt(self._run_dir)
        return result

    @contextlib.asynccontextmanager
    async def _reference(self, client: TrainingClient, model_dir: Path) -> AsyncIterator[Reference | None]:
        """The model before training: the adapter switched off, or, where all weights are trained, loaded once more."""
        config = self.config
        if not config.algorithm.kl_coef:
            yield None
        elif config.peft.use_peft:
            yield lambda datums: _logprobs(client, datums, with_adapter=False)
        else:
            plain = config.model_copy(update={"peft": PeftConfig(use_peft=False)})
            base = await open_client(plain, model_dir, self._hardware, self._run_dir / "unused")
            try:
                yield lambda datums: _logprobs(base, datums, with_adapter=True)
            finally:
                await base.close()


async def _logprobs(client: TrainingClient, datums: Sequence[Datum], *, with_adapter: bool) -> Sequence[np.ndarray]:
    return (await client.forward(datums, CrossEntropy(), with_adapter=with_adapter)).logprobs_D


def _describe(config: RLConfig, client: TrainingClient, num_problems: int | None) -> None:
    """Say what is about to be trained, and how far."""
    model, train_config = client.model_info(), config.train
    for note in config.notes:
        terminal.field("note", note)
    of = "problems drawn without end" if num_problems is None else f"{num_problems:,} problems"
    terminal.field(
        "train",
        f"{what_is_trained(config, model)}; {train_config.max_steps} steps of {train_config.groups_per_batch} x "
        f"{train_config.num_generations} answers to {of}, "
        f"peak rate {peak_rate(config, model.hidden_size):g}",
    )


def _say_if_nothing_was_learnt(run_dir: Path) -> None:
    if not any("optim/grad_norm" in record for record in read_metrics(run_dir)):
        terminal.field(
            "note",
            "no step was taken: the answers to each problem were all rewarded alike, or there were none; see "
            "sample/stop_* and reward/* in metrics.jsonl",
        )


def _report(line: str) -> None:
    terminal.field("run", line)
