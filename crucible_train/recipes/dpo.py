"""Learning from preferences: make the completion that was chosen likelier than the one that was rejected.

    L(theta) = - E_{(x, w, l)} log s( beta [ log p_theta(w|x) / p_ref(w|x) - log p_theta(l|x) / p_ref(l|x) ] )

    preferences -> rendered pairs -> log-probabilities of the reference, once -> a permutation an epoch
                -> forward_backward, optim_step -> metrics, evaluation on held-out pairs, checkpoints

That is DPO, whose implicit reward of a completion is beta log p_theta / p_ref; IPO, KTO, ORPO and SimPO put another
loss (``crucible_train.types.loss``) in its place. Both sides of a pair stand in one pass, their prompt computed once.
Bradley-Terry trains a reward model instead, whose rewards are those of a scalar head:

    L(theta) = - E_{(x, w, l)} log s( r_theta(x, w) - r_theta(x, l) )
"""

import time
from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import model_validator

from crucible_train.config.base import option
from crucible_train.config.judge import WinRateConfig
from crucible_train.config.run_config import JudgedConfig
from crucible_train.config.sections import (
    CheckpointConfig,
    EngineConfig,
    PeftConfig,
    PreferenceDataConfig,
    TrackingConfig,
)
from crucible_train.data.batching import BatchPlan
from crucible_train.data.preference_tables import RenderedPreference
from crucible_train.errors import ConfigError
from crucible_train.loop.run import TrainingRun, unbroken
from crucible_train.loop.training import Evaluate, StepDone, TrainingLoop, TrainingResult, adam_params, schedule_of
from crucible_train.loop.training import peak_rate as supervised_rate
from crucible_train.ports import TrainingClient
from crucible_train.preference.config import DPOEvalConfig, DPOOptimConfig, PreferenceConfig
from crucible_train.preference.measuring import Batch, PreferenceSet, preference_metrics

# A margin of log-probabilities moves much faster than their mean: what fits supervised tuning overshoots here. One of
# rewards is read at one position a side and does not.
_SHARE_OF_SUPERVISED_RATE = 0.1


class DPOConfig(JudgedConfig):
    """Training of a causal language model on preferences: DPO and its kin."""

    model: str = option("smollm2-135m-instruct", "a folder, a GGUF file, a hub id, or the built-in model's name")
    dataset: str = option("gsm8k-pairs", "a file, a folder, a hub id, any fsspec URL, or the built-in sample's name")
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
    data: PreferenceDataConfig = option(PreferenceDataConfig(), "rows and rendering")
    preference: PreferenceConfig = option(PreferenceConfig(), "how preferences become a gradient")
    peft: PeftConfig = option(PeftConfig(), "adapter")
    train: DPOOptimConfig = option(DPOOptimConfig(), "optimizer and schedule")
    engine: EngineConfig = option(EngineConfig(), "how it is computed")
    eval: DPOEvalConfig = option(DPOEvalConfig(), "what is measured")
    win_rate: WinRateConfig = option(
        WinRateConfig(), "whose answers to num_prompts held-out prompts a judge prefers, the trained model's or the old"
    )
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "what is kept")
    tracking: TrackingConfig = option(TrackingConfig(), "what trackers are told")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.preference.is_reward_model and self.win_rate.num_prompts:
            raise ValueError("win_rate.num_prompts: a reward model writes no answers that could be compared: take 0")
        return self


async def train(
    config: DPOConfig,
    client: TrainingClient,
    pairs: PreferenceSet,
    evaluate: Evaluate,
    run: TrainingRun,
    first_metrics: Mapping[str, float],
) -> TrainingResult:
    """Train on ``pairs``, from the newest checkpoint of ``run`` if it has one.

    Args:
        config: the whole configuration.
        client: the model.
        pairs: what is preferred, and what the reference gives to it.
        evaluate: measures held-out preferences.
        run: the run directory.
        first_metrics: what ``evaluate`` gives before the first step.

    Raises:
        ConfigError: there is nothing to train on, a completion stands alone, or the watched metric is never measured.
        TrainingError: a step failed; the state of the last good one is saved.
        Interrupted: somebody asked to stop; likewise.
    """
    check_paired(config, pairs.preferences)
    loss, plan = config.preference.loss(), plan_of(config, len(pairs))
    schedule = schedule_of(config.train, plan.num_steps, peak_rate(config, client.model_info().hidden_size))

    async def take_step(step: int) -> StepDone:
        started = time.monotonic()
        batch = Batch(pairs, plan.batch(step).tolist())
        point = await batch.reference_point(client, loss)
        output = await client.forward_backward(batch.datums(loss, point), loss)
        adam = adam_params(config.train, schedule.rate(step))
        optim = await unbroken(client.optim_step(adam))  # it moves the weights, so the state must move with it
        metrics = {
            "train/loss": output.loss,
            **preference_metrics("train", batch.measured(loss, output.logprobs_D, point)),
            **({} if point is None else {"train/reference_point": point}),
            "optim/learning_rate": adam.learning_rate,
            "optim/grad_norm": optim["grad_norm"],
            "progress/epoch": plan.epoch(step + 1),
        }
        num_tokens, seconds = batch.num_tokens, time.monotonic() - started
        return StepDone(num_tokens, metrics, {"time/step_s": seconds, "perf/tokens_per_second": num_tokens / seconds})

    loop = TrainingLoop(run, plan.num_steps, config.eval, config.checkpoint, evaluate)
    return await loop.from_newest(take_step, first_metrics)


def plan_of(config: DPOConfig, num_preferences: int) -> BatchPlan:
    """The order of preferences that a configuration asks for."""
    train = config.train
    batch_size = train.per_device_train_batch_size * train.gradient_accumulation_steps
    return BatchPlan(num_preferences, batch_size, train.num_train_epochs, train.max_steps, config.seed)


def peak_rate(config: DPOConfig, hidden_size: int) -> float:
    """The peak learning rate: as configured, or a tenth of what supervised tuning takes; all of it for rewards."""
    if config.train.learning_rate is not None:
        return config.train.learning_rate
    share = 1.0 if config.preference.is_reward_model else _SHARE_OF_SUPERVISED_RATE
    return float(f"{share * supervised_rate(config.train, config.peft, hidden_size):.1e}")


def check_paired(config: DPOConfig, preferences: Sequence[RenderedPreference]) -> None:
    """See that every completion has another to be compared with, where the loss compares two.

    Raises:
        ConfigError: one has not.
    """
    if config.preference.takes_unpaired:
        return
    num_alone = sum(len(one.sides) < 2 for one in preferences)
    if num_alone:
        raise ConfigError(
            f"preference.loss_type: {config.preference.loss_type} compares two completions, and {num_alone:,} of "
            f"{len(preferences):,} stand alone; take kto"
        )
