"""The task that every flow begins with, and how any task's outcome is summed up."""

from collections.abc import Mapping

from crucible_train import files, wiring
from crucible_train.config.run_config import JudgedConfig, RunConfig
from crucible_train.stages.base import Outcome, resolve
from crucible_train.stages.judging import served_judge
from crucible_train.stages.merge import Merge
from crucible_train.stages.prepare_model import PrepareModel, external, locate, model_field
from crucible_train.types import ArtifactRef
from tasks.stage import stage_task


@stage_task("prepare model")
async def prepare_model(config: RunConfig) -> Outcome:
    """A folder that transformers reads; a folder of the user's is taken as it is."""
    return await _prepared(config)


@stage_task("prepare judge")
async def prepare_judge(config: JudgedConfig) -> Outcome:
    """The same of the model that is to judge; of one behind a server its tokenizer."""
    with model_field("win_rate.judge"):
        if config.win_rate.judge_url is not None:
            return Outcome(served_judge(config.win_rate), is_cached=True)
        return await _prepared(config.model_copy(update={"model": str(config.win_rate.judge)}))


async def _prepared(config: RunConfig) -> Outcome:
    source = locate(config.model)
    if source.is_dir():
        return Outcome(external(source), is_cached=True)
    return await resolve(PrepareModel(config, source), {}, config.cache_dir)


@stage_task("merge")
async def merge(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> Outcome:
    """One whole model, from ``model``, ``trained`` and ``package``."""
    return await resolve(Merge(config), inputs, config.cache_dir)


def summary_of(outcome: Outcome, config: RunConfig) -> dict[str, object]:
    """The ``summary.json`` of an artifact."""
    return dict(files.read_json(wiring.blob_store(config.cache_dir).fetch(outcome.ref) / "summary.json"))
