"""Supervised fine-tuning: raise the probability of what the assistant said.

    L(theta) = - sum_{t trained} log p_theta(x_t | x_<t) / number of trained tokens of the step

    rows -> conversations -> rendered examples -> a permutation an epoch -> forward_backward, optim_step
         -> metrics, evaluation on held-out examples, checkpoints

Axes: D datums of a step.
"""

import time
from collections.abc import Mapping, Sequence

from crucible_train.config.base import option
from crucible_train.config.judge import WinRateConfig
from crucible_train.config.run_config import JudgedConfig
from crucible_train.config.sections import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvalConfig,
    OptimConfig,
    PeftConfig,
    TrackingConfig,
)
from crucible_train.data.batching import BatchPlan
from crucible_train.data.examples import Example, normalised
from crucible_train.loop.run import TrainingRun, unbroken
from crucible_train.loop.training import (
    Evaluate,
    StepDone,
    TrainingLoop,
    TrainingResult,
    adam_params,
    peak_rate,
    schedule_of,
)
from crucible_train.ports import TrainingClient
from crucible_train.types import CrossEntropy


class SFTConfig(JudgedConfig):
    """Supervised fine-tuning of a causal language model on conversations."""

    model: str = option("smollm2-135m-instruct", "a folder, a GGUF file, a hub id, or the built-in model's name")
    dataset: str = option("gsm8k-sample", "a file, a folder, a hub id, any fsspec URL, or the built-in sample's name")
    output_dir: str = option("runs", "folder that holds the run folders")
    run_name: str | None = option(None, "name in front of the run's id; null makes one of model and data")
    seed: int = option(0, "decides the split, the order and every draw; 0 to 4294967295", ge=0, le=2**32 - 1)
    report_to: list[str] = option(
        ["auto"],
        "where metrics go besides metrics.jsonl: console, csv, tensorboard, wandb, mlflow, trackio, neptune; auto is "
        "the console, and mlflow where it is installed",
        advanced=True,
    )
    cache_dir: str = option(
        "~/.cache/crucible_train", "store of cached artifacts: a folder or any fsspec URL", advanced=True
    )
    data: DataConfig = option(DataConfig(), "rows and rendering")
    peft: PeftConfig = option(PeftConfig(), "adapter")
    train: OptimConfig = option(OptimConfig(), "optimizer and schedule")
    engine: EngineConfig = option(EngineConfig(), "how it is computed")
    eval: EvalConfig = option(EvalConfig(), "what is measured")
    win_rate: WinRateConfig = option(
        WinRateConfig(), "whose answers to num_prompts held-out prompts a judge prefers, the trained model's or the old"
    )
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "what is kept")
    tracking: TrackingConfig = option(TrackingConfig(), "what trackers are told")


async def train(
    config: SFTConfig,
    client: TrainingClient,
    examples: Sequence[Example],
    evaluate: Evaluate,
    run: TrainingRun,
    first_metrics: Mapping[str, float],
) -> TrainingResult:
    """Train on ``examples``, from the newest checkpoint of ``run`` if it has one.

    Args:
        config: the whole configuration.
        client: the model.
        examples: rendered examples to train on.
        evaluate: measures held-out data.
        run: the run directory.
        first_metrics: what ``evaluate`` gives before the first step.

    Raises:
        ConfigError: there is nothing to train on, or the watched metric is never measured.
        TrainingError: a step failed; the state of the last good one is saved.
        Interrupted: somebody asked to stop; likewise.
    """
    plan = plan_of(config, len(examples))
    rate = peak_rate(config.train, config.peft, client.model_info().hidden_size)
    schedule = schedule_of(config.train, plan.num_steps, rate)

    async def take_step(step: int) -> StepDone:
        started = time.monotonic()
        batch = [examples[index] for index in plan.batch(step)]
        datums_D = normalised(batch, config.train.loss_normalisation)
        output = await client.forward_backward(datums_D, CrossEntropy())
        adam = adam_params(config.train, schedule.rate(step))
        optim = await unbroken(client.optim_step(adam))  # it moves the weights, so the state must move with it
        metrics = {
            "train/loss": output.loss,
            "optim/learning_rate": adam.learning_rate,
            "optim/grad_norm": optim["grad_norm"],
            "progress/epoch": plan.epoch(step + 1),
        }
        num_tokens, seconds = sum(int(example.tokens_T.size) for example in batch), time.monotonic() - started
        return StepDone(num_tokens, metrics, {"time/step_s": seconds, "perf/tokens_per_second": num_tokens / seconds})

    loop = TrainingLoop(run, plan.num_steps, config.eval, config.checkpoint, evaluate)
    return await loop.from_newest(take_step, first_metrics)


def plan_of(config: SFTConfig, num_examples: int) -> BatchPlan:
    """The order of examples that a configuration asks for."""
    train = config.train
    batch_size = train.per_device_train_batch_size * train.gradient_accumulation_steps
    return BatchPlan(num_examples, batch_size, train.num_train_epochs, train.max_steps, config.seed)
