"""The tasks of learning from preferences. References cross their borders, never models or rows."""

from collections.abc import Mapping
from pathlib import Path

from crucible_train.recipes.dpo import DPOConfig
from crucible_train.stages.base import Outcome, resolve
from crucible_train.stages.dpo import evaluate as evaluation
from crucible_train.stages.dpo import prepare_data as data
from crucible_train.stages.dpo import reference as scoring
from crucible_train.stages.dpo import render as rendering
from crucible_train.stages.dpo.answers import AnswerPreferences
from crucible_train.stages.dpo.evaluate import EvaluateDPO
from crucible_train.stages.dpo.package import PackageDPO
from crucible_train.stages.dpo.prepare_data import PreparePreferences
from crucible_train.stages.dpo.reference import ReferencePass
from crucible_train.stages.dpo.render import RenderPreferences
from crucible_train.stages.dpo.train import TrainDPO
from crucible_train.types import ArtifactRef, Hardware
from tasks.model import summary_of
from tasks.stage import stage_task
from tasks.win_rate import compared

Refs = Mapping[str, ArtifactRef]


@stage_task("prepare data")
async def prepare_data(config: DPOConfig) -> Outcome:
    """Preferences."""
    outcome = await resolve(PreparePreferences(config), {}, config.cache_dir)
    data.report(summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome


@stage_task("render")
async def render(config: DPOConfig, inputs: Refs) -> Outcome:
    """Tokens and weights, from ``model`` and ``conversations``."""
    outcome = await resolve(RenderPreferences(config), inputs, config.cache_dir)
    rendering.report(summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome


@stage_task("reference")
async def reference(config: DPOConfig, hardware: Hardware, inputs: Refs) -> Outcome:
    """Log-probabilities of the model before training, from ``model`` and ``rendered``."""
    outcome = await resolve(ReferencePass(config, hardware), inputs, config.cache_dir)
    scoring.report(summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome


@stage_task("evaluate", run_name="evaluate {name}")
async def evaluate(config: DPOConfig, hardware: Hardware, inputs: Refs, name: str) -> Outcome:
    """Held-out figures, from ``model``, ``rendered``, ``reference`` where there is one and, if there, ``trained``."""
    outcome = await resolve(EvaluateDPO(config, hardware), inputs, config.cache_dir)
    evaluation.report(name, summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome


@stage_task("train")
async def train(config: DPOConfig, hardware: Hardware, run_dir: Path, inputs: Refs) -> Outcome:
    """Trained weights, from ``model``, ``rendered``, ``reference`` where there is one, and ``before``."""
    return await resolve(TrainDPO(config, hardware, run_dir), inputs, config.cache_dir)


@stage_task("win rate")
async def win_rate(config: DPOConfig, hardware: Hardware, inputs: Refs) -> Outcome:
    """How often a judge prefers the trained model's answers, from what it was trained on, ``trained`` and ``judge``."""
    return await compared(config, hardware, AnswerPreferences(config, hardware), inputs)


@stage_task("package")
async def package(config: DPOConfig, hardware: Hardware, run_dir: Path, inputs: Refs) -> Outcome:
    """What a user takes away, from everything before."""
    return await resolve(PackageDPO(config, hardware, run_dir), inputs, config.cache_dir)
