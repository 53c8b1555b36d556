"""What can be found wrong with a configuration of distillation before anything is run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from crucible_train import wiring
from crucible_train.distill.config import TeacherConfig
from crucible_train.distill.teacher import Teacher, check_objective
from crucible_train.errors import ConfigError
from crucible_train.recipes.distill import DistillConfig
from crucible_train.renderers import FastTokenizer
from crucible_train.stages import preflight
from crucible_train.stages.distill.sources import sources
from crucible_train.stages.distill.teachers import peft_of, student_of, teacher_reader
from crucible_train.stages.prepare_model import BUILT_IN, at_hand, description_of, model_field
from crucible_train.stages.rl.preflight import addresses, environment, watched_metric

STEP_METRICS = (
    "optim/learning_rate",
    "progress/num_problems",
    "progress/num_tokens",
    "reward/mean",
    "train/teacher_kl",
)
"""What every step measures; an environment's own parts of the reward come besides."""

Problems = Iterator[str]


def check(config: DistillConfig, tell: Callable[[str], None] = preflight.tell) -> None:
    """Look at everything that can be looked at cheaply; notes go to ``tell``.

    Raises:
        ConfigError: something is wrong; all that is wrong is reported together.
    """
    preflight.check_all(config, _CHECKS, tell)


def _secrets(config: DistillConfig) -> Problems:
    values = addresses(config)
    for field, teacher in config.teacher_configs.items():
        values |= {f"{field}.{name}": getattr(teacher, name) for name in ("model", "adapter", "tokenizer")}
        values[f"{field}.tinker.model"] = teacher.tinker.model
    yield from preflight.secrets(values)


def _environment(config: DistillConfig) -> Problems:
    return environment(config.env, lambda: sources(config))


def _watched_metric(config: DistillConfig) -> Problems:
    return watched_metric(config.eval.metric_for_best_model, STEP_METRICS)


def _teachers(config: DistillConfig) -> Problems:
    """Their files, and, where the tokenizers are here, whether what they know can be taught."""
    for field, teacher in config.teacher_configs.items():
        found = list(_files(field, teacher))
        yield from found
        is_sound = all(isinstance(one, preflight.Note) for one in found)
        if is_sound and not any(preflight.holds_secret(one) for one in (teacher.model, config.model)):
            _check_fit(config, field, teacher)


def _files(field: str, teacher: TeacherConfig) -> Problems:
    if teacher.renderer != "auto" and not preflight.is_renderer(teacher.renderer):
        yield f"{field}.renderer: {teacher.renderer!r} is unknown"
    if teacher.adapter is not None and not preflight.holds_secret(teacher.adapter):
        peft_of(Path(teacher.adapter).expanduser(), field)
    if teacher.tokenizer is not None and not Path(teacher.tokenizer).expanduser().is_dir():
        yield f"{field}.tokenizer: {teacher.tokenizer}: there is no such folder"
    key = teacher.server.api_key_env
    if teacher.kind == "server" and key and not os.environ.get(key):
        yield f"{field}.server.api_key_env: the environment variable {key} is not set"
    if teacher.kind == "server":
        yield from preflight.silence(f"{field}.server.base_url", teacher.server.base_url, "the student is first taught")
    if teacher.kind == "tinker":
        yield from _tinker(field)


def _tinker(field: str) -> Problems:
    try:
        wiring.check_tinker()
    except ConfigError as error:
        yield f"{field}.kind: {error}"


def _check_fit(config: DistillConfig, field: str, teacher: TeacherConfig) -> None:
    """See that the teacher can teach in this way, as far as can be seen without its weights.

    Raises:
        ConfigError: it cannot.
    """
    mine = description_of(config.model, None if config.model == BUILT_IN else at_hand(config.model))
    its = None
    if teacher.model is not None:
        with model_field(f"{field}.model"):
            its = description_of(teacher.model, None if teacher.model == BUILT_IN else at_hand(teacher.model))
        if its is None:
            return
    if mine is None:
        return
    student = student_of(config, mine, FastTokenizer.from_folder(mine))
    reader, shares_ids, shares_format = teacher_reader(config, teacher, student, its)
    seen = Teacher(field, None, reader, shares_ids, shares_format)  # type: ignore[arg-type]  # nothing is asked of it
    check_objective(seen, student, config.lesson.objective)


_CHECKS = (
    _secrets,
    preflight.names,
    _environment,
    _watched_metric,
    preflight.places,
    preflight.checkpoint,
    preflight.model,
    preflight.device,
    _teachers,
)
