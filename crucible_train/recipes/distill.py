"""Distillation: the student becomes as the teacher, on answers of its own or on the teacher's.

    J(theta)      = E_{problem, y ~ p_theta} sum_t KL( p_theta(. | problem, y_<t) || p_teacher(. | its prompt, y_<t) )
    grad J(theta) ~ E sum_t grad KL_t exactly, or -A_t grad log p_theta(y_t) with A_t = log p_teacher - log p_theta

    problems -> answers of the student (or the teacher) -> the teacher's view of each -> datums
             -> forward_backward, optim_step -> metrics, evaluation on held-out problems, checkpoints

A teacher may read more than the student does, such as worked examples or a long prompt: then the student comes to act
as if it had read that, too. Axes: P problems of a batch, G answers to a problem, D datums.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pydantic import ValidationError, model_validator

from crucible_train import files
from crucible_train.config.base import option
from crucible_train.config.run_config import RunConfig
from crucible_train.config.sections import CheckpointConfig, EngineConfig, PeftConfig, TrackingConfig
from crucible_train.distill.config import LessonConfig, TeacherConfig
from crucible_train.distill.lessons import lesson
from crucible_train.distill.pairs import Pair, first_prompt, pairs_of
from crucible_train.distill.teacher import Reader, Teacher, Teachers
from crucible_train.errors import ConfigError
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
from crucible_train.ports import SamplingClient, TrainingClient
from crucible_train.rl.config import ChatConfig, EnvConfig, RLEvalConfig, RLOptimConfig, ScheduleConfig
from crucible_train.rl.environment import EnvGroupBuilder, TrajectoryGroup
from crucible_train.rl.lockstep import Lockstep, seats_of
from crucible_train.rl.metrics import group_metrics, progress
from crucible_train.rl.pipeline import Pipeline
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.rl.rollouts import OnFailure, rollout_group
from crucible_train.seeds import fold, generator
from crucible_train.types import AdamParams

ROLLOUTS_FILE = "rollouts.json"
"""What a checkpoint keeps of rollouts: which problem is next, and what is played but not trained on."""
BY_TEACHER = "by_teacher"
"""The tag of groups that the teacher answered."""


class DistillOptimConfig(RLOptimConfig):
    """AdamW, its schedule and the size of a step."""

    learning_rate: float | None = option(
        3e-4, "peak rate, above 0; all weights want about a tenth of an adapter's; null: by the model's width", gt=0
    )
    max_steps: int = option(20, "batches, 1 or more", ge=1)
    num_generations: int = option(2, "answers to each problem, 1 or more", ge=1)


class DistillEvalConfig(RLEvalConfig):
    """What is measured on held-out problems, while training and at its end."""

    measure_kl: bool = option(
        True, "before and after, have held-out problems answered once more at temperature 1, and the teacher score them"
    )


class DistillConfig(RunConfig):
    """Distillation of a teacher into a causal language model."""

    model: str = option("smollm2-135m-instruct", "the student: a folder, a GGUF file, a hub id, or the built-in one")
    teacher: TeacherConfig = option(TeacherConfig(), "who teaches")
    teachers: dict[str, dict[str, Any]] = option(
        {}, "other teachers, by a tag of the problems that they teach; each has the fields of teacher"
    )
    env: EnvConfig = option(
        EnvConfig(options={"num_shots": 0, "answer_alone": False}), "what is asked; rewards are measured, not trained"
    )
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
    lesson: LessonConfig = option(LessonConfig(), "who answers, and what is learnt from it")
    rollout: RolloutConfig = option(RolloutConfig(max_tokens=24), "limits and sampling of answers")
    schedule: ScheduleConfig = option(ScheduleConfig(), "when answers are sampled")
    peft: PeftConfig = option(PeftConfig(), "adapter")
    train: DistillOptimConfig = option(DistillOptimConfig(), "optimizer and schedule")
    engine: EngineConfig = option(EngineConfig(), "how it is computed")
    eval: DistillEvalConfig = option(DistillEvalConfig(), "what is measured")
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "what is kept")
    tracking: TrackingConfig = option(TrackingConfig(), "what trackers are told")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule.mode == "streamed":
            raise ValueError("schedule.mode: streamed is for reinforcement learning: take synchronous or off_policy")
        for name, plain in self.rollout.bent.items() if self.lesson.objective == "reverse_kl" else ():
            raise ValueError(
                f"rollout.{name}: reverse_kl estimates a divergence from what the student itself would write: "
                f"take {plain:g}, or lesson.objective=divergence, which is exact whatever is written"
            )
        for name, teacher in self.teacher_configs.items():
            if teacher.is_itself and not teacher.preface(self.env.name) and teacher.renderer == "auto":
                raise ValueError(f"{name}: the model itself teaches nothing unless it reads more: give {name}.before")
            if teacher.is_served and self.lesson.objective == "divergence":
                who = "a server" if teacher.kind == "server" else "the Tinker service"
                raise ValueError(
                    f"{name}: {who} does not tell whole distributions; take lesson.objective=reverse_kl or top_k"
                )
        return self

    @property
    def teacher_configs(self) -> Mapping[str, TeacherConfig]:
        """Every teacher by its field.

        Raises:
            ValueError: one is not what a teacher is.
        """
        found = {"teacher": self.teacher}
        for tag, fields in self.teachers.items():
            try:
                found[f"teachers.{tag}"] = TeacherConfig.model_validate(fields)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                place = ".".join(["teachers", tag, *map(str, first["loc"])])
                raise ValueError(f"teachers: {place}: {first['msg']}") from error
        return found


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run is given besides its model.

    Attributes:
        student: how the student sees the problems.
        teachers: who teaches; they see the same problems by the same numbers.
        evaluate: measures the current weights on held-out problems.
        on_failure: told of every episode that fails.
        show: told of the groups of every step.
        span: times a phase of a step: its name, and the track of the timeline that it belongs to.
    """

    student: Reader
    teachers: Teachers
    evaluate: Evaluate
    on_failure: OnFailure = lambda _problem, _error: None
    show: Callable[[int, Sequence[TrajectoryGroup]], None] = lambda _step, _groups: None
    span: Callable[[str, str], AbstractContextManager[object]] = lambda _name, _track: nullcontext()


async def train(
    config: DistillConfig,
    client: TrainingClient,
    around: Surroundings,
    run: TrainingRun,
    first_metrics: Mapping[str, float],
) -> TrainingResult:
    """Train on the teachers' lessons, from the newest checkpoint of ``run`` if it has one.

    Args:
        config: the whole configuration.
        client: the student.
        around: what is asked, who teaches, what measures and watches.
        run: the run directory.
        first_metrics: what ``around.evaluate`` gives before the first step.

    Raises:
        ConfigError: the watched metric is never measured, or a teacher does not fit.
        TrainingError: a step failed; the state of the last good one is saved.
        RolloutError: an episode failed, and none may.
        Interrupted: somebody asked to stop; likewise.
    """
    num_steps, num_problems = config.train.max_steps, config.train.groups_per_batch
    schedule = schedule_of(
        config.train, num_steps, peak_rate(config.train, config.peft, client.model_info().hidden_size)
    )
    room = config.rollout.max_context or client.model_info().max_positions
    rollout = config.rollout.model_copy(update={"max_context": room})
    roles = _Roles(config, client, around)

    def gather(num_groups: int) -> SamplingClient:
        fresh = client.sampling_client()  # what was sampled before has no say in how this is rounded
        num_seats = num_groups * config.train.num_generations
        return Lockstep(fresh, num_seats, roles.num_steps) if config.schedule.lockstep else fresh

    async def play(index: int, sampler: SamplingClient) -> TrajectoryGroup | None:
        seed, size = fold(config.seed, "rollout", index), config.train.num_generations
        with ExitStack() as stack:
            seats = stack.enter_context(seats_of(sampler, size))  # first, so that nobody waits for what cannot be made
            who, builder = roles.writer(index, seats)
            by_teacher = who is not seats
            if by_teacher:
                stack.close()  # the student's answers do not wait for the teacher's
            with around.span(builder.problem, "rollouts"):
                group = await rollout_group(
                    builder, size, who, rollout, seed, roles.num_steps, on_failure=around.on_failure
                )
        return replace(group, tags=(*group.tags, BY_TEACHER)) if group is not None and by_teacher else group

    async with Pipeline(play, config.schedule, num_problems, gather) as pipeline:

        async def take_step(step: int) -> StepDone:
            roles.step = step
            await pipeline.look_ahead(num_steps - step)
            work = _Step(roles, step, adam_params(config.train, schedule.rate(step)))
            with around.span("sample", "training"):
                groups = [group async for part in pipeline.parts() for group in part]
            work.sample_s = time.monotonic() - work.started
            done = await work.learn(groups)
            pipeline.finish_step()
            num_train = around.student.problems.num_train
            return replace(done, metrics={**done.metrics, **progress(pipeline.num_trained, num_train)})

        def kept_rollouts() -> Mapping[str, bytes]:
            pipeline.stop()  # after settle nothing is left to stop; a save in haste does not wait for episodes
            return {ROLLOUTS_FILE: files.canonical_json(pipeline.to_json()).encode()}

        run.attach(kept_rollouts)
        state = await run.resume()
        kept = run.attached(ROLLOUTS_FILE)
        if kept is not None:
            pipeline.restore(files.parse_json(kept))
        loop = TrainingLoop(
            run, num_steps, config.eval, config.checkpoint, around.evaluate, before_save=pipeline.settle
        )
        return await loop.from_state(state, take_step, first_metrics)


@dataclass(slots=True)
class _Roles:
    """Who answers which problem. ``step`` says how many optimizer steps the student has taken."""

    config: DistillConfig
    client: TrainingClient
    around: Surroundings
    step: int = 0

    def num_steps(self) -> int:
        """As ``step``, for rollouts."""
        return self.step

    def is_by_teacher(self, index: int) -> bool:
        """Whether the teacher answers this problem."""
        share = self.config.lesson.student_share
        return share < 1 and float(generator(self.config.seed, "who answers", index).random()) >= share

    def writer(self, index: int, student: SamplingClient) -> tuple[SamplingClient, EnvGroupBuilder]:
        """Who answers this problem, and the problem as it sees it."""
        builder = self.around.student.problems.train(index)
        if not self.is_by_teacher(index):
            return student, builder
        teacher = self.around.teachers.of(builder.tags)
        return teacher.client, _same(teacher, teacher.reader.problems.train(index), builder)

    async def pairs(self, groups: Sequence[TrajectoryGroup], step: int) -> Mapping[str, tuple[Teacher, list[Pair]]]:
        """The answers of a batch, as the student and its teacher read them, by the teacher's name."""
        num = self.config.train.groups_per_batch
        numbers = {self.around.student.problems.train(i).problem: i for i in range(step * num, (step + 1) * num)}
        found: dict[str, tuple[Teacher, list[Pair]]] = {}
        for group in groups:
            teacher = self.around.teachers.of(group.tags)
            by_teacher, index = BY_TEACHER in group.tags, numbers[group.problem]
            builder = self.around.student.problems.train(index)
            other = builder if by_teacher else _same(teacher, teacher.reader.problems.train(index), builder)
            read = await first_prompt(other)
            _, mine = found.setdefault(teacher.name, (teacher, []))
            for trajectory in group.trajectories_G:
                mine += pairs_of(trajectory, teacher, self.around.student, read, by_teacher=by_teacher)
        return found


def _same(teacher: Teacher, its: EnvGroupBuilder, students: EnvGroupBuilder) -> EnvGroupBuilder:
    if its.problem != students.problem:
        raise ConfigError(
            f"{teacher.name}: it is asked {its.problem!r} where the student is asked {students.problem!r}"
        )
    return its


@dataclass(slots=True)
class _Step:
    """One batch on its way through teachers and student."""

    roles: _Roles
    step: int
    adam: AdamParams
    sample_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    async def learn(self, groups: Sequence[TrajectoryGroup]) -> StepDone:
        """Train on some answers."""
        roles, config, around = self.roles, self.roles.config, self.roles.around
        metrics = group_metrics(groups, self.step) | {
            "optim/learning_rate": self.adam.learning_rate,
        }
        by_teacher = await roles.pairs(groups, self.step)
        taught = {
            name: (teacher, [pair for pair in pairs if pair.num_trained])
            for name, (teacher, pairs) in by_teacher.items()
        }
        num_trained = sum(pair.num_trained for _, pairs in taught.values() for pair in pairs)
        num_tokens = sum(pair.student_T.size - 1 for _, pairs in taught.values() for pair in pairs)
        if num_trained:
            loss, divergences = 0.0, defaultdict(float)
            for name, (teacher, pairs) in taught.items():
                with around.span("teach", "training"):
                    made = await lesson(config.lesson, teacher, pairs, num_trained)
                with around.span("train", "training"):
                    output = await roles.client.forward_backward(made.datums_D, made.loss)
                loss += output.loss
                divergences[name] = made.divergence(output)
            with around.span("optimise", "training"):
                optim = await unbroken(roles.client.optim_step(self.adam))
            metrics |= {
                "train/loss": loss,
                "train/teacher_kl": sum(divergences.values()) / num_trained,
                "optim/grad_norm": optim["grad_norm"],
            }
            if len(around.teachers.all) > 1:
                shares = {name: sum(pair.num_trained for pair in pairs) for name, (_, pairs) in taught.items()}
                metrics |= {f"train/kl_{name}": divergences[name] / max(1, num) for name, num in shares.items()}
        metrics["train/num_tokens"] = float(num_trained)
        around.show(self.step + 1, groups)
        return StepDone(num_tokens, metrics, self._timings(groups, num_tokens))

    def _timings(self, groups: Sequence[TrajectoryGroup], num_tokens: int) -> dict[str, float]:
        seconds = time.monotonic() - self.started
        num_sampled = sum(one.num_sampled_tokens for group in groups for one in group.trajectories_G)
        train_s = max(1e-9, seconds - self.sample_s)
        return {
            "time/step_s": seconds,
            "time/sample_s": self.sample_s,
            "time/train_s": train_s,
            "perf/sampled_tokens_per_second": num_sampled / max(1e-9, self.sample_s),
            "perf/tokens_per_second": num_tokens / train_s,
        }
