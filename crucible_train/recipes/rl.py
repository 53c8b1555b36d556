"""Reinforcement learning: raise the probability of what was rewarded more than the other answers to the same problem.

    J(theta)      = E_{problem, y ~ p_theta} [ r(y) ]
    grad J(theta) = E [ sum_t A grad log p_theta(y_t | problem, y_<t) ],    A = r(y) - baseline of its group

    problems -> G answers each -> rewards -> advantages -> datums -> forward_backward, optim_step
             -> metrics, evaluation on held-out problems, checkpoints

Axes: P problems of a batch, G answers to a problem, D datums.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
from pydantic import model_validator

from crucible_train import files
from crucible_train.config.base import option
from crucible_train.config.run_config import RunConfig
from crucible_train.config.sections import CheckpointConfig, EngineConfig, PeftConfig
from crucible_train.errors import ConfigError
from crucible_train.loop.run import TrainingRun, unbroken
from crucible_train.loop.training import (
    Evaluate,
    StepDone,
    TrainingLoop,
    TrainingResult,
    adam_params,
    schedule_of,
)
from crucible_train.loop.training import peak_rate as supervised_rate
from crucible_train.ports import SamplingClient, TrainingClient
from crucible_train.rl.batch import (
    ScoredGroup,
    TrainingBatch,
    scored_groups,
    training_batch,
    with_kl_in_advantage,
    with_truncated_importance,
)
from crucible_train.rl.config import (
    AlgorithmConfig,
    ChatConfig,
    EnvConfig,
    RLEvalConfig,
    RLOptimConfig,
    ScheduleConfig,
)
from crucible_train.rl.environment import TrajectoryGroup
from crucible_train.rl.lockstep import Lockstep, seats_of
from crucible_train.rl.metrics import clip_fraction, divergence, group_metrics, prefixed
from crucible_train.rl.pipeline import Pipeline
from crucible_train.rl.problem_set import ProblemSet
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.rl.rollouts import OnFailure, rollout_group
from crucible_train.rl.sequences import with_input
from crucible_train.seeds import fold
from crucible_train.types import AdamParams, CrossEntropy, Datum

# One batch's gradient is noisy, and answers that are sampled from a collapsed policy teach nothing.
_SHARE_OF_SUPERVISED_RATE = 0.4
T = TypeVar("T")
ROLLOUTS_FILE = "rollouts.json"
"""What a checkpoint keeps of rollouts: which problem is next, and what is played but not trained on."""
Reference = Callable[[Sequence[Datum]], Awaitable[Sequence[np.ndarray]]]
"""The log-probability that the model before training gives to each target that counts, one array (N_d,) a datum."""
Span = Callable[[str, str], AbstractContextManager[object]]
"""Times what happens in its context: its name, and the track of the timeline that it belongs to."""


class RLConfig(RunConfig):
    """Reinforcement learning of a causal language model in an environment."""

    model: str = option("smollm2-135m-instruct", "a folder, a GGUF file, a hub id, or the built-in model's name")
    env: EnvConfig = option(EnvConfig(), "what the policy acts in")
    output_dir: str = option("runs", "folder that holds the run folders")
    run_name: str | None = option(None, "name in front of the run's id; null makes one of model and environment")
    seed: int = option(0, "decides the problems, their order and every draw; 0 to 4294967295", ge=0, le=2**32 - 1)
    report_to: list[str] = option(["console"], "where metrics go besides metrics.jsonl", advanced=True)
    cache_dir: str = option(
        "~/.cache/crucible_train", "store of cached artifacts: a folder or any fsspec URL", advanced=True
    )
    data: ChatConfig = option(ChatConfig(), "chat format")
    rollout: RolloutConfig = option(RolloutConfig(), "limits and sampling of episodes")
    algorithm: AlgorithmConfig = option(AlgorithmConfig(), "how rewards become a gradient")
    schedule: ScheduleConfig = option(ScheduleConfig(), "when answers are sampled")
    peft: PeftConfig = option(PeftConfig(), "adapter")
    train: RLOptimConfig = option(RLOptimConfig(), "optimizer and schedule")
    engine: EngineConfig = option(EngineConfig(), "how it is computed")
    eval: RLEvalConfig = option(RLEvalConfig(), "what is measured")
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "what is kept")
    num_logged_groups: int = option(
        2, "groups of each logged step that the report shows answer by answer, 0 or more", ge=0, advanced=True
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        algorithm, train = self.algorithm, self.train
        if self.schedule.mode == "streamed":
            if algorithm.normalisation == "token":
                raise ValueError("algorithm.normalisation: streamed needs sequence or constant: tokens are not counted")
            if algorithm.advantage == "batch_mean" or algorithm.max_resampling_rounds or algorithm.num_substeps > 1:
                raise ValueError(
                    "schedule.mode: streamed goes with neither algorithm.advantage=batch_mean nor "
                    "max_resampling_rounds nor num_substeps, which need the whole batch first"
                )
        if algorithm.num_substeps > train.groups_per_batch:
            raise ValueError("algorithm.num_substeps: there are more than train.groups_per_batch")
        if train.num_generations == 1 and algorithm.advantage != "batch_mean":
            raise ValueError("train.num_generations: one answer has no baseline; take algorithm.advantage=batch_mean")
        if algorithm.overlong_buffer_tokens > self.rollout.max_tokens:
            raise ValueError("algorithm.overlong_buffer_tokens: it is longer than rollout.max_tokens")
        return self


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run is given besides its model and its problems.

    Attributes:
        evaluate: measures the current weights on held-out problems.
        reference: the model before training; needed where there is a penalty on the divergence from it.
        on_failure: told of every episode that fails.
        show: told of the groups of every step with their advantages.
        span: times a phase of a step.
    """

    evaluate: Evaluate
    reference: Reference | None = None
    on_failure: OnFailure = lambda _problem, _error: None
    show: Callable[[int, Sequence[ScoredGroup]], None] = lambda _step, _groups: None
    span: Span = lambda _name, _track: nullcontext()


async def train(
    config: RLConfig,
    client: TrainingClient,
    problems: ProblemSet,
    around: Surroundings,
    run: TrainingRun,
    first_metrics: Mapping[str, float],
) -> TrainingResult:
    """Train on ``problems``, from the newest checkpoint of ``run`` if it has one.

    Args:
        config: the whole configuration.
        client: the model.
        problems: what is played.
        around: what measures and watches.
        run: the run directory.
        first_metrics: what ``around.evaluate`` gives before the first step.

    Raises:
        ConfigError: the watched metric is never measured, or a penalty has no reference.
        TrainingError: a step failed; the state of the last good one is saved.
        RolloutError: an episode failed, and none may.
        Interrupted: somebody asked to stop; likewise.
    """
    num_steps = config.train.max_steps
    schedule = schedule_of(config.train, num_steps, peak_rate(config, client.model_info().hidden_size))
    policy = _Policy(config, client, around)
    room = config.rollout.max_context or client.model_info().max_positions
    rollout = config.rollout.model_copy(update={"max_context": room})

    def gather(num_groups: int) -> SamplingClient:
        fresh = client.sampling_client()  # what was sampled before has no say in how this is rounded
        return Lockstep(fresh, num_groups * config.train.num_generations) if config.schedule.lockstep else fresh

    async def play(index: int, sampler: SamplingClient) -> TrajectoryGroup | None:
        builder, seed = problems.train(index), fold(config.seed, "rollout", index)
        size, now = config.train.num_generations, policy.step
        with around.span(builder.problem, "rollouts"), seats_of(sampler, size) as seats:
            return await rollout_group(builder, size, seats, rollout, seed, now, on_failure=around.on_failure)

    async with Pipeline(play, config.schedule, config.train.groups_per_batch, gather) as pipeline:

        async def take_step(step: int) -> StepDone:
            update = policy.begin(step, adam_params(config.train, schedule.rate(step)))
            await pipeline.look_ahead(num_steps - step)
            if config.schedule.mode == "streamed":
                parts = pipeline.parts()
                while (groups := await update.sampled(anext(parts, None))) is not None:
                    await update.accumulate(groups)
                await update.optimise()
            else:
                groups = await update.sampled(_with_more(pipeline, config))
                for part in _split(groups, config.algorithm.num_substeps):
                    await update.accumulate(part)
                    await update.optimise()
            done = await update.done()
            pipeline.finish_step()
            policy.is_whole = True
            return done

        def kept_rollouts() -> Mapping[str, bytes]:
            pipeline.stop()  # after settle nothing is left to stop; a save in haste does not wait for episodes
            return {ROLLOUTS_FILE: files.canonical_json(pipeline.to_json()).encode()}

        run.attach(kept_rollouts)
        state = await run.resume()
        kept = run.attached(ROLLOUTS_FILE)
        if kept is not None:
            pipeline.restore(files.parse_json(kept))
        loop = TrainingLoop(
            run,
            num_steps,
            config.eval,
            config.checkpoint,
            around.evaluate,
            before_save=pipeline.settle,
            is_whole=lambda: policy.is_whole,
        )
        return await loop.from_state(state, take_step, first_metrics)


def peak_rate(config: RLConfig, hidden_size: int) -> float:
    """The peak learning rate: as configured, or less than half of what supervised tuning takes."""
    if config.train.learning_rate is not None:
        return config.train.learning_rate
    return float(f"{_SHARE_OF_SUPERVISED_RATE * supervised_rate(config.train, config.peft, hidden_size):.1e}")


async def _with_more(pipeline: Pipeline, config: RLConfig) -> Sequence[TrajectoryGroup]:
    """The groups of a batch, and more in place of those that teach nothing, as often as that is allowed.

    Dynamic sampling of DAPO (arXiv 2503.14476), with a bound.
    """
    groups = [group async for part in pipeline.parts() for group in part]
    for _ in range(config.algorithm.max_resampling_rounds):
        scored = scored_groups(groups, config.algorithm, max_tokens=config.rollout.max_tokens)
        num_useful = sum(one.is_trained for one in scored)
        if num_useful >= config.train.groups_per_batch:
            break
        groups += await pipeline.take(config.train.groups_per_batch - num_useful)
    return groups


def _split(groups: Sequence[TrajectoryGroup], num_parts: int) -> list[Sequence[TrajectoryGroup]]:
    """Groups in parts of nearly equal size."""
    ends = [len(groups) * part // num_parts for part in range(num_parts + 1)]
    return [groups[begin:end] for begin, end in pairwise(ends)]


class _Policy:
    """The policy over the whole run.

    ``step`` says how many optimizer steps it has taken; ``is_whole`` whether its weights are those of the last finished
    batch, and not somewhere between two.
    """

    def __init__(self, config: RLConfig, client: TrainingClient, around: Surroundings) -> None:
        self.config, self.client, self.around = config, client, around
        self.is_whole = True
        self._num_before = self._num_of_step = 0

    def begin(self, step: int, adam: AdamParams) -> "_Update":
        """Begin a step."""
        self._num_before, self._num_of_step = step * self.config.algorithm.num_substeps, 0
        return _Update(self, step, adam, self.step())

    def step(self) -> int:
        """How many optimizer steps the weights have taken."""
        return self._num_before + self._num_of_step

    def moved(self) -> None:
        """An optimizer step of the batch is done."""
        self._num_of_step += 1


@dataclass(slots=True)
class _Update:
    """One batch on its way through the model: its gradients, its steps, its numbers.

    The datums of ``batches`` hold what the sampler said of its tokens; ``datums``, which are trained on, what the loss
    compares with, and the advantages less their penalties.
    """

    policy: _Policy
    step: int
    adam: AdamParams
    first_policy_step: int
    groups: list[TrajectoryGroup] = field(default_factory=list)
    batches: list[TrainingBatch] = field(default_factory=list)
    datums: list[Datum] = field(default_factory=list)
    reference_logprobs: list[np.ndarray] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    sample_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    _is_waiting: bool = False

    async def sampled(self, groups: Awaitable[T]) -> T:
        """Wait for groups, and count the time."""
        started = time.monotonic()
        with self.policy.around.span("sample", "training"):
            found = await groups
        self.sample_s += time.monotonic() - started
        return found

    async def accumulate(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Form the gradient of some groups and add it to what is gathered."""
        config, client, around = self.policy.config, self.policy.client, self.policy.around
        algorithm, train = config.algorithm, config.train
        num_planned = max(1, train.groups_per_batch * train.num_generations // algorithm.num_substeps)
        batch = training_batch(groups, algorithm, num_planned=num_planned, max_tokens=config.rollout.max_tokens)
        self.groups += groups
        self.batches.append(batch)
        if not batch.datums_D:
            return
        with around.span("train", "training"):
            datums = await self._prepared(batch.datums_D)
            output = await client.forward_backward(datums, algorithm.policy_loss())
        self.datums += datums
        self.logprobs += output.logprobs_D
        self.losses.append(output.loss)
        self._is_waiting = True

    async def optimise(self) -> None:
        """Take an optimizer step, if there is a gradient."""
        if self._is_waiting:
            self._is_waiting = self.policy.is_whole = False
            with self.policy.around.span("optimise", "training"):
                # it moves the weights, so the state must move with it
                optim = await unbroken(self.policy.client.optim_step(self.adam))
            self.norms.append(optim["grad_norm"])
        self.policy.moved()

    async def done(self) -> StepDone:
        """The numbers of the step."""
        config = self.policy.config
        scored = [one for batch in self.batches for one in batch.groups_P]
        metrics = {
            **group_metrics(self.groups, self.first_policy_step),
            "optim/learning_rate": self.adam.learning_rate,
            "train/num_groups": float(sum(one.is_trained for one in scored)),
            "progress/epoch": (self.step + 1) / config.train.max_steps,
        }
        if self.datums:
            sampled = [datum for batch in self.batches for datum in batch.datums_D]
            loss = config.algorithm.policy_loss()
            clipped = clip_fraction(loss, self.datums, self.logprobs)
            metrics |= {
                "train/loss": sum(self.losses) / config.algorithm.num_substeps,
                "optim/grad_norm": max(self.norms),
                **prefixed("train/", divergence(sampled, self.logprobs)),
                **({} if clipped is None else {"train/clip_fraction": clipped}),
            }
            if self.reference_logprobs:
                away = divergence(sampled, self.reference_logprobs)
                metrics["train/kl_reference"] = away["kl_v1"]
            if config.algorithm.measure_post_kl:
                after = await unbroken(self.policy.client.forward(sampled, CrossEntropy()))
                moved = divergence(sampled, after.logprobs_D)
                metrics |= {"train/post_kl_v1": moved["kl_v1"], "train/post_kl_v2": moved["kl_v2"]}
        self.policy.around.show(self.step + 1, scored)
        return StepDone(sum(datum.num_tokens for datum in self.datums), metrics, self._timings())

    async def _prepared(self, datums: Sequence[Datum]) -> Sequence[Datum]:
        """Datums with what the reference, or the weights at hand, say of them."""
        algorithm, around = self.policy.config.algorithm, self.policy.around
        if algorithm.kl_coef:
            if around.reference is None:
                raise ConfigError("algorithm.kl_coef: there is no reference to measure the divergence from")
            reference_D = await around.reference(datums)
            self.reference_logprobs += reference_D
            if algorithm.kl_in == "advantage":
                datums = with_kl_in_advantage(datums, reference_D, algorithm.kl_coef, algorithm.estimator)
            else:
                named = zip(datums, reference_D, strict=True)
                datums = [with_input(datum, "reference_logprobs", values) for datum, values in named]
        if algorithm.max_importance_weight is not None:
            current = await self.policy.client.forward(datums, CrossEntropy())
            datums = with_truncated_importance(datums, current.logprobs_D, algorithm.max_importance_weight)
        return datums

    def _timings(self) -> dict[str, float]:
        seconds = time.monotonic() - self.started
        num_sampled = sum(one.num_sampled_tokens for group in self.groups for one in group.trajectories_G)
        num_trained, train_s = sum(datum.num_tokens for datum in self.datums), max(1e-9, seconds - self.sample_s)
        return {
            "time/step_s": seconds,
            "time/sample_s": self.sample_s,
            "time/train_s": train_s,
            "perf/sampled_tokens_per_second": num_sampled / max(1e-9, self.sample_s),
            "perf/tokens_per_second": num_trained / train_s,
        }
