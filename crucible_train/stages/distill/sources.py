"""What decides the results of distillation besides its configuration: data sets, stored adapters."""

from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.distill.config import TeacherConfig
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.stages.rl.problems import sources as problem_sources

_DECIDING_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "config.json",
    "tokenizer.json",
    "tokenizer.json.xz",
    "tokenizer_config.json",
    RECORD_FILE,
)
"""Weights of an adapter, and what a tokenizer and a chat format are read from."""


def sources(config: DistillConfig) -> list[Any]:
    """The digests of what the environment's options and the teachers name by its place.

    Raises:
        DataError: there is no data set of that name.
    """
    of_problems = problem_sources(RLConfig(env=config.env))
    return [*of_problems, *(_digests(teacher) for teacher in config.teacher_configs.values())]


def _digests(teacher: TeacherConfig) -> list[str]:
    folders = [Path(place).expanduser() for place in (teacher.adapter, teacher.tokenizer) if place is not None]
    return [
        files.sha256_file(folder / name) for folder in folders for name in _DECIDING_FILES if (folder / name).is_file()
    ]
