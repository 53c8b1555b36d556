"""The tasks of distillation. References cross their borders, never models or answers."""

from collections.abc import Mapping
from pathlib import Path

from crucible_train.recipes.distill import DistillConfig
from crucible_train.stages.base import Outcome, resolve
from crucible_train.stages.distill.evaluate import EvaluateDistill
from crucible_train.stages.distill.package import PackageDistill
from crucible_train.stages.distill.train import TrainDistill
from crucible_train.stages.rl import evaluate as evaluation
from crucible_train.types import ArtifactRef, Hardware
from tasks.model import summary_of
from tasks.stage import stage_task

Refs = Mapping[str, ArtifactRef]


@stage_task("evaluate", run_name="evaluate {name}")
async def evaluate(config: DistillConfig, hardware: Hardware, inputs: Refs, name: str) -> Outcome:
    """How held-out problems are answered, from the models and, where it is there, ``trained``."""
    outcome = await resolve(EvaluateDistill(config, hardware), inputs, config.cache_dir)
    evaluation.report(name, summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome


@stage_task("train")
async def train(config: DistillConfig, hardware: Hardware, run_dir: Path, inputs: Refs) -> Outcome:
    """Trained weights, from the models and ``before``."""
    return await resolve(TrainDistill(config, hardware, run_dir), inputs, config.cache_dir)


@stage_task("package")
async def package(config: DistillConfig, hardware: Hardware, run_dir: Path, inputs: Refs) -> Outcome:
    """What a user takes away, from everything before."""
    return await resolve(PackageDistill(config, hardware, run_dir), inputs, config.cache_dir)
