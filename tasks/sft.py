"""The tasks of supervised fine-tuning. References cross their borders, never models or rows."""

from collections.abc import Mapping
from pathlib import Path

from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import evaluate as evaluation
from crucible_train.stages import prepare_data as data
from crucible_train.stages import render as rendering
from crucible_train.stages.base import Outcome, resolve
from crucible_train.stages.evaluate import Evaluate
from crucible_train.stages.package import Package
from crucible_train.stages.prepare_data import PrepareData
from crucible_train.stages.render import Render
from crucible_train.stages.sft_answers import AnswerRows
from crucible_train.stages.train import Train
from crucible_train.types import ArtifactRef, Hardware
from tasks.model import summary_of
from tasks.stage import stage_task
from tasks.win_rate import compared

Refs = Mapping[str, ArtifactRef]


@stage_task("prepare data")
async def prepare_data(config: SFTConfig) -> Outcome:
    """Conversations."""
    outcome = await resolve(PrepareData(config), {}, config.cache_dir)
    data.report(summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome


@stage_task("render")
async def render(config: SFTConfig, inputs: Refs) -> Outcome:
    """Tokens and weights, from ``model`` and ``conversations``."""
    outcome = await resolve(Render(config), inputs, config.cache_dir)
    rendering.report(summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome


@stage_task("evaluate", run_name="evaluate {name}")
async def evaluate(config: SFTConfig, hardware: Hardware, inputs: Refs, name: str) -> Outcome:
    """Held-out figures, from ``model``, ``conversations``, ``rendered`` and, where it is there, ``trained``."""
    outcome = await resolve(Evaluate(config, hardware), inputs, config.cache_dir)
    evaluation.report(name, summary_of(outcome, config), is_cached=outcome.is_cached)
    return outcome


@stage_task("train")
async def train(config: SFTConfig, hardware: Hardware, run_dir: Path, inputs: Refs) -> Outcome:
    """Trained weights, from ``model``, ``conversations``, ``rendered`` and ``before``."""
    return await resolve(Train(config, hardware, run_dir), inputs, config.cache_dir)


@stage_task("win rate")
async def win_rate(config: SFTConfig, hardware: Hardware, inputs: Refs) -> Outcome:
    """How often a judge prefers the trained model's answers, from what it was trained on, ``trained`` and ``judge``."""
    return await compared(config, hardware, AnswerRows(config, hardware), inputs)


@stage_task("package")
async def package(config: SFTConfig, hardware: Hardware, run_dir: Path, inputs: Refs) -> Outcome:
    """What a user takes away, from everything before."""
    return await resolve(Package(config, hardware, run_dir), inputs, config.cache_dir)
