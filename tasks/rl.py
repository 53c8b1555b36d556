"""The tasks of reinforcement learning. References cross their borders, never models or rollouts."""

from collections.abc import Mapping
from pathlib import Path

from crucible_train.recipes.rl import RLConfig
from crucible_train.stages.base import Outcome, resolve
from crucible_train.stages.rl import evaluate as evaluation
from crucible_train.stages.rl.evaluate import EvaluateRL
from crucible_train.stages.rl.package import PackageRL
from crucible_train.stages.rl.train import TrainRL
from crucible_train.types import ArtifactRef, Hardware
from tasks.model import summary_of
from tasks.stage import stage_task

Refs = Mapping[str, ArtifactRef]


@stage_task("evaluate", run_name="evaluate {name}")
async def evaluate(config: RLConfig, hardware: Hardware, inputs: Refs, name: str) -> Outcome:
    """How held-out problems are played, from ``model`` and, where it is there, ``trained``."""
    outcome = await resolve(EvaluateRL(config, hardware), inputs, config.cache_dir)
    evaluation.report(name, summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome


@stage_task("train")
async def train(config: RLConfig, hardware: Hardware, run_dir: Path, inputs: Refs) -> Outcome:
    """Trained weights, from ``model`` and ``before``."""
    return await resolve(TrainRL(config, hardware, run_dir), inputs, config.cache_dir)


@stage_task("package")
async def package(config: RLConfig, hardware: Hardware, run_dir: Path, inputs: Refs) -> Outcome:
    """What a user takes away, from everything before."""
    return await resolve(PackageRL(config, hardware, run_dir), inputs, config.cache_dir)
