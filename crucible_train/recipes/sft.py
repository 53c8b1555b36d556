"""Supervised fine-tuning: raise the probability of what the assistant said.

    L(theta) = - sum_{t trained} log p_theta(x_t | x_<t) / number of trained tokens of the step

    rows -> conversations -> rendered examples -> a permutation an epoch -> forward_backward, optim_step
         -> metrics, evaluation on held-out examples, checkpoints

Axes: D datums of a step.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from crucible_train.config.base import Section, option
from crucible_train.config.sections import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvalConfig,
    OptimConfig,
    PeftConfig,
)
from crucible_train.data.batching import BatchPlan
from crucible_train.data.examples import Example, normalised
from crucible_train.errors import ConfigError
from crucible_train.loop.run import Cadence, TrainingRun, unbroken
from crucible_train.loop.state import Best, LoopState
from crucible_train.ports import TrainingClient
from crucible_train.schedules import Schedule, count_steps
from crucible_train.types import AdamParams, CrossEntropy


class SFTConfig(Section):
    """Supervised fine-tuning of a causal language model on conversations."""

    model: str = option("smollm2-135m-instruct", "a folder, a GGUF file, a hub id, or the built-in model's name")
    dataset: str = option("gsm8k-sample", "a file, a folder, a hub id, any fsspec URL, or the built-in sample's name")
    output_dir: str = option("runs", "folder that holds the run folders")
    run_name: str | None = option(None, "name in front of the run's id; null makes one of model and data")
    seed: int = option(0, "decides the split, the order and every draw; 0 to 4294967295", ge=0, le=2**32 - 1)
    report_to: list[str] = option(["console"], "where metrics go besides metrics.jsonl", advanced=True)
    cache_dir: str = option(
        "~/.cache/crucible_train", "store of cached artifacts: a folder or any fsspec URL", advanced=True
    )
    data: DataConfig = option(DataConfig(), "rows and rendering")
    peft: PeftConfig = option(PeftConfig(), "adapter")
    train: OptimConfig = option(OptimConfig(), "optimizer and schedule")
    engine: EngineConfig = option(EngineConfig(), "how it is computed")
    eval: EvalConfig = option(EvalConfig(), "what is measured")
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "what is kept")


Evaluate = Callable[[int], Awaitable[Mapping[str, float]]]
"""Measures the current weights after a number of steps."""


@dataclass(frozen=True, slots=True)
class SFTResult:
    """How a run ended: the steps taken, why no more, and the step whose weights are to be published."""

    num_steps: int
    stopped_early: bool
    published_step: int
    final_metrics: Mapping[str, float]


async def train(
    config: SFTConfig,
    client: TrainingClient,
    examples: Sequence[Example],
    evaluate: Evaluate,
    run: TrainingRun,
    first_metrics: Mapping[str, float],
) -> SFTResult:
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
    schedule = schedule_of(config.train, plan.num_steps, peak_rate(config, client.model_info().hidden_size))
    evals = Cadence.of(config.eval.eval_steps, plan.num_steps)
    saves = Cadence.of(config.checkpoint.save_steps, plan.num_steps)
    state = await run.resume()
    if state.step == 0:
        run.log(0, first_metrics)
    async with run.guarded(lambda: state):
        while state.unlogged is not None or (state.step < plan.num_steps and not _is_exhausted(state, config)):
            timings: Mapping[str, float] = {}
            if state.unlogged is None:  # else the run was stopped between a step and its evaluation
                batch = [examples[index] for index in plan.batch(state.step)]
                started = time.monotonic()
                metrics = await _step(client, batch, config.train, schedule.rate(state.step))
                timings = _timings(batch, time.monotonic() - started)
                state = _advance(state, batch, metrics, plan)
            state = await _finish_step(state, timings, evaluate if evals.is_due(state.step) else None, config.eval, run)
            is_best = config.checkpoint.load_best_model_at_end and state.best.step == state.step
            if is_best or run.is_save_due(state.step, saves):
                await run.save(state)
        if state.step > 0 and run.is_save_due(state.step, Cadence(1, plan.num_steps)):
            await run.save(state)
    published = (
        state.best.step if config.checkpoint.load_best_model_at_end and state.best.value is not None else state.step
    )
    return SFTResult(state.step, state.step < plan.num_steps, published, run.last_metrics())


def plan_of(config: SFTConfig, num_examples: int) -> BatchPlan:
    """The order of examples that a configuration asks for."""
    train = config.train
    batch_size = train.per_device_train_batch_size * train.gradient_accumulation_steps
    return BatchPlan(num_examples, batch_size, train.num_train_epochs, train.max_steps, config.seed)


def peak_rate(config: SFTConfig, hidden_size: int) -> float:
    """The peak learning rate: as configured, or by the model's width.

    Wider models want smaller rates: the best rate falls about as width^-0.8, and 2e-4 is what is used for adapters on
    models 4096 wide. Without an adapter every weight moves, and a tenth of that is usual.
    """
    if config.train.learning_rate is not None:
        return config.train.learning_rate
    rate = 2e-4 * (4096 / hidden_size) ** 0.8 * (1.0 if config.peft.use_peft else 0.1)
    return float(f"{rate:.1e}")


def schedule_of(train: OptimConfig, num_steps: int, peak_rate: float) -> Schedule:
    """The learning rates that a configuration asks for."""
    return Schedule(
        train.lr_scheduler_type,
        peak_rate,
        num_steps,
        min(count_steps(train.warmup_steps, num_steps), num_steps),
        min(count_steps(train.decay_steps, num_steps), num_steps),
        train.min_lr_ratio,
    )


async def _step(client: TrainingClient, batch: Sequence[Example], train: OptimConfig, rate: float) -> dict[str, float]:
    """One optimizer step over a batch."""
    datums_D = normalised(batch, train.loss_normalisation)
    output = await client.forward_backward(datums_D, CrossEntropy())
    adam = AdamParams(
        learning_rate=rate,
        beta1=train.adam_beta1,
        beta2=train.adam_beta2,
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        grad_clip_norm=train.max_grad_norm,
    )
    optim = await unbroken(client.optim_step(adam))  # it moves the weights, so the state must move with it
    return {"train/loss": output.loss, "optim/learning_rate": rate, "optim/grad_norm": optim["grad_norm"]}


def _advance(state: LoopState, batch: Sequence[Example], metrics: Mapping[str, float], plan: BatchPlan) -> LoopState:
    """The state after a step whose evaluation is still to come."""
    step, num_tokens = state.step + 1, state.num_tokens + sum(int(example.tokens_T.size) for example in batch)
    return replace(
        state,
        step=step,
        num_tokens=num_tokens,
        unlogged={**metrics, "progress/epoch": plan.epoch(step), "progress/num_tokens": num_tokens},
    )


async def _finish_step(
    state: LoopState,
    timings: Mapping[str, float],
    evaluate: Evaluate | None,
    config: EvalConfig,
    run: TrainingRun,
) -> LoopState:
    """Evaluate where it is due, and log the step."""
    metrics, best = dict(state.unlogged or {}), state.best
    if evaluate is not None:
        measured = await evaluate(state.step)
        metrics.update(measured)
        if measured or config.metric_for_best_model in metrics:  # else nothing is held out, and nothing to watch
            best = _watch(state, metrics, config)
    run.log(state.step, {**metrics, **timings})
    return replace(state, best=best, unlogged=None)


def _timings(batch: Sequence[Example], seconds: float) -> dict[str, float]:
    num_tokens = sum(int(example.tokens_T.size) for example in batch)
    return {"time/step_s": seconds, "perf/tokens_per_second": num_tokens / seconds}


def _watch(state: LoopState, metrics: Mapping[str, float], config: EvalConfig) -> Best:
    """Compare the watched metric with the best so far."""
    name = config.metric_for_best_model
    if name not in metrics:
        known = ", ".join(sorted(metrics))
        raise ConfigError(f"eval.metric_for_best_model: {name!r} is not measured; measured are {known}")
    return state.best.after(
        metrics[name],
        state.step,
        greater_is_better=not _is_loss(name) if config.greater_is_better is None else config.greater_is_better,
        threshold=config.early_stopping_threshold,
    )


def _is_loss(name: str) -> bool:
    """Whether a metric is one that training lowers."""
    return name.rpartition("/")[2] in ("loss", "nll", "perplexity", "bits_per_byte", "grad_norm")


def _is_exhausted(state: LoopState, config: SFTConfig) -> bool:
    patience = config.eval.early_stopping_patience
    return patience is not None and state.best.num_evals_since >= patience
