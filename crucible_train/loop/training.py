"""The loop that every recipe runs: take a step, evaluate where it is due, log, save, stop early.

A recipe says what one step is; the order of these things, and what a run that goes on finds, is the same for all.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from crucible_train.config.sections import AdamConfig, CheckpointConfig, PeftConfig
from crucible_train.errors import ConfigError
from crucible_train.loop.run import Cadence, TrainingRun
from crucible_train.loop.state import Best, LoopState
from crucible_train.schedules import Schedule, count_steps
from crucible_train.types import AdamParams

Metrics = Mapping[str, float]
Evaluate = Callable[[int], Awaitable[Metrics]]
"""Measures the current weights after a number of steps."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """What a step did: tokens consumed, numbers that are the same in every run, and numbers that are not."""

    num_tokens: int
    metrics: Metrics
    timings: Metrics


TakeStep = Callable[[int], Awaitable[StepDone]]
"""Takes the step of this number, which counts from 0."""


class Watch(Protocol):
    """When a run is measured, and which metric says which weights are best and when to stop."""

    @property
    def eval_steps(self) -> float:
        """Every N steps, or every share of the run; 0 at the end only."""

    @property
    def metric_for_best_model(self) -> str:
        """The metric that is watched."""

    @property
    def greater_is_better(self) -> bool | None:
        """Whether it is to rise; None: scores are, losses are not."""

    @property
    def early_stopping_patience(self) -> int | None:
        """Evaluations without a gain before stopping; None never."""

    @property
    def early_stopping_threshold(self) -> float:
        """The smallest gain that counts."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended: the steps taken, why no more, and the step whose weights are to be published."""

    num_steps: int
    stopped_early: bool
    published_step: int
    final_metrics: Metrics


@dataclass(frozen=True, slots=True)
class TrainingLoop:
    """One run's loop.

    Attributes:
        run: its directory.
        num_steps: how many steps it has.
        watch: when it is measured, and what is watched.
        checkpoint: what is kept of it.
        evaluate: measures it.
        before_save: awaited before a save that is not made in haste.
        is_whole: whether the weights are those of the last finished step; a run that is stopped while they are not
            leaves its newest checkpoint as the last word.
    """

    run: TrainingRun
    num_steps: int
    watch: Watch
    checkpoint: CheckpointConfig
    evaluate: Evaluate
    before_save: Callable[[], Awaitable[None]] | None = None
    is_whole: Callable[[], bool] = lambda: True

    async def from_newest(self, take_step: TakeStep, first_metrics: Metrics) -> TrainingResult:
        """Run from the newest checkpoint, if there is one, to the end.

        Args:
            take_step: what a step is.
            first_metrics: what ``evaluate`` gives before the first step.

        Raises:
            ConfigError: the watched metric is never measured.
            TrainingError: a step failed; the state of the last good one is saved.
            Interrupted: somebody asked to stop; likewise.
        """
        return await self.from_state(await self.run.resume(), take_step, first_metrics)

    async def from_state(self, state: LoopState, take_step: TakeStep, first_metrics: Metrics) -> TrainingResult:
        """Run from where ``run.resume`` has put everything. As ``from_newest`` otherwise."""
        evals = Cadence.of(self.watch.eval_steps, self.num_steps)
        saves = Cadence.of(self.checkpoint.save_steps, self.num_steps)
        keeps_best = self.checkpoint.load_best_model_at_end
        if state.step == 0:
            self.run.log(0, first_metrics)
        async with self.run.guarded(lambda: state if self.is_whole() else None):
            while state.unlogged is not None or (state.step < self.num_steps and not self._is_exhausted(state)):
                timings: Metrics = {}
                if state.unlogged is None:  # else the run was stopped between a step and its evaluation
                    done = await take_step(state.step)
                    state, timings = _advanced(state, done), done.timings
                state = await self._finish_step(state, timings, is_measured=evals.is_due(state.step))
                if (keeps_best and state.best.step == state.step) or self.run.is_save_due(state.step, saves):
                    await self._save(state)
            if state.step > 0 and self.run.is_save_due(state.step, Cadence(1, self.num_steps)):
                await self._save(state)
        published = state.best.step if keeps_best and state.best.value is not None else state.step
        return TrainingResult(state.step, state.step < self.num_steps, published, self.run.last_metrics())

    async def _save(self, state: LoopState) -> None:
        if self.before_save is not None:
            await self.before_save()
        await self.run.save(state)

    async def _finish_step(self, state: LoopState, timings: Metrics, *, is_measured: bool) -> LoopState:
        """Evaluate where it is due, and log the step."""
        metrics, best = dict(state.unlogged or {}), state.best
        if is_measured:
            measured = await self.evaluate(state.step)
            metrics.update(measured)
            if measured or self.watch.metric_for_best_model in metrics:  # else nothing is held out to watch
                best = self._watched(state, metrics)
        self.run.log(state.step, {**metrics, **timings})
        return replace(state, best=best, unlogged=None)

    def _watched(self, state: LoopState, metrics: Metrics) -> Best:
        """Compare the watched metric with the best so far."""
        name = self.watch.metric_for_best_model
        if name not in metrics:
            known = ", ".join(sorted(metrics))
            raise ConfigError(f"eval.metric_for_best_model: {name!r} is not measured; measured are {known}")
        is_wanted = self.watch.greater_is_better
        return state.best.after(
            metrics[name],
            state.step,
            greater_is_better=not is_loss(name) if is_wanted is None else is_wanted,
            threshold=self.watch.early_stopping_threshold,
        )

    def _is_exhausted(self, state: LoopState) -> bool:
        patience = self.watch.early_stopping_patience
        return patience is not None and state.best.num_evals_since >= patience


def _advanced(state: LoopState, done: StepDone) -> LoopState:
    """The state after a step whose evaluation is still to come."""
    num_tokens = state.num_tokens + done.num_tokens
    unlogged = {**done.metrics, "progress/num_tokens": num_tokens}
    return replace(state, step=state.step + 1, num_tokens=num_tokens, unlogged=unlogged)


def is_loss(name: str) -> bool:
    """Whether a metric is one that training lowers."""
    return name.rpartition("/")[2] in ("loss", "nll", "perplexity", "bits_per_byte", "grad_norm", "teacher_kl")


def peak_rate(train: AdamConfig, peft: PeftConfig, hidden_size: int) -> float:
    """The peak learning rate: as configured, or by the model's width.

    Wider models want smaller rates: the best rate falls about as width^-0.8, and 2e-4 is what is used for adapters on
    models 4096 wide. Without an adapter every weight moves, and a tenth of that is usual.
    """
    if train.learning_rate is not None:
        return train.learning_rate
    rate = 2e-4 * (4096 / hidden_size) ** 0.8 * (1.0 if peft.use_peft else 0.1)
    return float(f"{rate:.1e}")


def schedule_of(train: AdamConfig, num_steps: int, peak_rate: float) -> Schedule:
    """The learning rates that a configuration asks for."""
    return Schedule(
        train.lr_scheduler_type,
        peak_rate,
        num_steps,
        min(count_steps(train.warmup_steps, num_steps), num_steps),
        min(count_steps(train.decay_steps, num_steps), num_steps),
        train.min_lr_ratio,
    )


def adam_params(train: AdamConfig, rate: float) -> AdamParams:
    """The values of one optimizer step."""
    return AdamParams(
        learning_rate=rate,
        beta1=train.adam_beta1,
        beta2=train.adam_beta2,
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        grad_clip_norm=train.max_grad_norm,
    )
