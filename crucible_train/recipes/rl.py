"""Reinforcement learning: raise the probability of what was rewarded more than the other answers to the same problem.

    J(theta)      = E_{problem, y ~ p_theta} [ r(y) ]
    grad J(theta) = E [ sum_t A grad log p_theta(y_t | problem, y_<t) ],    A = r(y) - baseline of its group

    problems -> G answers each -> rewards -> advantages -> datums -> forward_backward, optim_step
             -> metrics, evaluation on held-out problems, checkpoints

Axes: P problems of a batch, G answers to a problem, D datums.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

from pydantic import model_validator

from crucible_train import files
from crucible_train.config.base import option
from crucible_train.config.run_config import RunConfig
from crucible_train.config.sections import CheckpointConfig, EngineConfig, PeftConfig, TrackingConfig
from crucible_train.errors import ConfigError
from crucible_train.loop.run import TrainingRun
from crucible_train.loop.training import StepDone, TrainingLoop, TrainingResult, adam_params, schedule_of
from crucible_train.loop.training import peak_rate as supervised_rate
from crucible_train.ports import SamplingClient, TrainingClient
from crucible_train.rl.batch import scored_groups
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
from crucible_train.rl.metrics import progress
from crucible_train.rl.pipeline import Pipeline
from crucible_train.rl.problem_set import ProblemSet
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.rl.rollouts import rollout_group
from crucible_train.rl.update import Policy, Surroundings
from crucible_train.seeds import fold

# One batch's gradient is noisy, and answers that are sampled from a collapsed policy teach nothing.
_SHARE_OF_SUPERVISED_RATE = 0.4
ROLLOUTS_FILE = "rollouts.json"
"""What a checkpoint keeps of rollouts: which problem is next, and what is played but not trained on."""


class RLConfig(RunConfig):
    """Reinforcement learning of a causal language model in an environment."""

    model: str = option("smollm2-135m-instruct", "a folder, a GGUF file, a hub id, or the built-in model's name")
    env: EnvConfig = option(EnvConfig(), "what the policy acts in")
    output_dir: str = option("runs", "folder that holds the run folders")
    run_name: str | None = option(None, "name in front of the run's id; null makes one of model and environment")
    seed: int = option(0, "decides the problems, their order and every draw; 0 to 4294967295", ge=0, le=2**32 - 1)
    report_to: list[str] = option(
        ["auto"],
        "where metrics go besides metrics.jsonl: console, csv, tensorboard, wandb, mlflow, trackio, neptune; auto is "
        "the console, and mlflow where it is installed",
        advanced=True,
    )
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
    tracking: TrackingConfig = option(TrackingConfig(), "what trackers are told")
    num_logged_groups: int = option(
        2, "groups of each logged step that the report shows answer by answer, 0 or more", ge=0, advanced=True
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        algorithm, train = self.algorithm, self.train
        if self.schedule.mode == "streamed":
            if algorithm.normalisation == "token":
                raise ValueError(
                    "algorithm.normalisation: with schedule.mode=streamed give sequence or constant; how many tokens a "
                    "batch has is known only when all of it is sampled"
                )
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
        if self.rollout.temperature == 0:
            raise ValueError("rollout.temperature: answers that are all alike teach nothing; give one above 0")
        is_clipped = algorithm.clip_low is not None or algorithm.clip_high is not None
        if is_clipped and algorithm.max_importance_weight is not None and algorithm.num_substeps == 1:
            raise ValueError(
                "algorithm.max_importance_weight: with it and one substep every ratio is 1, and no bound has an effect"
            )
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of this choice."""
        return (*self._idle(), *self._bent())

    def _idle(self) -> Iterator[str]:
        """Options that were set where another one keeps them from having an effect."""
        algorithm, rollout, schedule = self.algorithm, self.rollout, self.schedule
        idle = {
            "schedule.max_steps_off_policy": (schedule.mode != "off_policy", "schedule.mode is not off_policy"),
            "schedule.num_minibatches": (schedule.mode != "streamed", "schedule.mode is not streamed"),
            "algorithm.dro_beta": (algorithm.loss != "dro", "algorithm.loss is not dro"),
            "algorithm.kl_in": (not algorithm.kl_coef, "algorithm.kl_coef is 0"),
            "algorithm.kl_estimator": (not algorithm.kl_coef, "algorithm.kl_coef is 0"),
            "algorithm.overlong_penalty": (
                not algorithm.overlong_buffer_tokens,
                "algorithm.overlong_buffer_tokens is 0",
            ),
            "rollout.num_tries": (rollout.on_error != "retry", "rollout.on_error is not retry"),
            "rollout.min_group_share": (rollout.on_error != "min_viable", "rollout.on_error is not min_viable"),
        }
        for path, (is_idle, why) in idle.items():
            section, _, name = path.partition(".")
            values = getattr(self, section)
            if is_idle and getattr(values, name) != type(values).model_fields[name].default:
                yield f"{path} has no effect, since {why}"

    def _bent(self) -> Iterator[str]:
        """Ways of sampling that make answers come from another distribution than the one that is trained."""
        changed = [f"rollout.{name}" for name in self.rollout.bent]
        if changed:
            yield (
                f"{', '.join(changed)}: answers come from another distribution than the one that is trained, whose "
                "ratio and divergence are those at temperature 1: the gradient is biased"
            )


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
    _check_watched(config.eval.metric_for_best_model, first_metrics)
    num_steps = config.train.max_steps
    schedule = schedule_of(config.train, num_steps, peak_rate(config, client.model_info().hidden_size))
    policy = Policy(config.algorithm, config.train, config.rollout.max_tokens, client, around)
    room = config.rollout.max_context or client.model_info().max_positions
    rollout = config.rollout.model_copy(update={"max_context": room})

    def gather(num_groups: int) -> SamplingClient:
        fresh = client.sampling_client()  # what was sampled before has no say in how this is rounded
        num_seats = num_groups * config.train.num_generations
        return Lockstep(fresh, num_seats, policy.step) if config.schedule.lockstep else fresh

    async def play(index: int, sampler: SamplingClient) -> TrajectoryGroup | None:
        seed, size, now = fold(config.seed, "rollout", index), config.train.num_generations, policy.step
        with seats_of(sampler, size) as seats:  # first, so that nobody waits for a problem that cannot be made
            builder = problems.train(index)
            with around.span(builder.problem, "rollouts"):
                return await rollout_group(builder, size, seats, rollout, seed, now, on_failure=around.on_failure)

    async with Pipeline(play, config.schedule, config.train.groups_per_batch, gather) as pipeline:

        async def take_step(step: int) -> StepDone:
            update = policy.begin(step, adam_params(config.train, schedule.rate(step)))
            await pipeline.look_ahead(num_steps - step)
            if config.schedule.mode == "streamed":
                parts = pipeline.parts()
                while (groups := await update.sampled(anext(parts, None))) is not None:
                    for part in await update.prepared(groups, 1):
                        await update.accumulate(part)
                await update.optimise()
            else:
                groups = await update.sampled(_with_more(pipeline, config))
                for part in await update.prepared(groups, config.algorithm.num_substeps):
                    await update.accumulate(part)
                    await update.optimise()
            done = await update.done()
            pipeline.finish_step()
            policy.is_whole = True
            return replace(done, metrics={**done.metrics, **progress(pipeline.num_trained, problems.num_train)})

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


def _check_watched(name: str, first_metrics: Mapping[str, float]) -> None:
    if name.startswith("eval/") and first_metrics and name not in first_metrics:
        known = ", ".join(sorted(first_metrics))
        raise ConfigError(f"eval.metric_for_best_model: {name!r} is not measured; measured are {known}")
