"""The problems of a run: made of the configuration and the model's chat format."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from crucible_train import files, wiring
from crucible_train.config.sections import EngineConfig
from crucible_train.judges import Asked
from crucible_train.ports import Tokenizer
from crucible_train.recipes.rl import RLConfig
from crucible_train.renderers import Renderer
from crucible_train.rl.config import EnvConfig
from crucible_train.rl.environments import Identified, problems, read_options
from crucible_train.rl.environments.preference import JudgeSource
from crucible_train.rl.problem_set import ProblemSet
from crucible_train.stages.chat_format import renderer_of
from crucible_train.stages.judging import OpenedJudge, judge_identity, tell_bias
from crucible_train.types import Hardware

PROBLEM_FIELDS = ("seed", "env", "data.renderer", "data.renderer_options")
"""What decides which problems there are."""
PROBLEM_CODE = (
    "rl",
    "judges",
    "renderers",
    "types",
    "seeds",
    "evaluation",
    "data",
    "sandbox",
    "adapters.row_store",
    "config.judge",
    "config.sections",
    "config.server",
    "stages.chat_format",
    "stages.judging",
)
"""What makes problems and judges answers."""
PROBLEM_LIBRARIES = ("numpy", "tokenizers", "jinja2", "pyarrow")
"""What draws problems, and makes tokens of them; an environment's own library is in ``sources``."""


@asynccontextmanager
async def opened(
    config: RLConfig, model_dir: Path, tokenizer: Tokenizer, hardware: Hardware
) -> AsyncIterator[ProblemSet]:
    """The problems with what judges them, which is loaded when it is first asked.

    Raises:
        ConfigError: as ``problem_set``.
        DataError: likewise.
    """
    own = (model_dir, renderer_of(config, model_dir, tokenizer))
    async with judge_of(config.env, own, config.engine, hardware) as judge:
        yield problem_set(config, model_dir, tokenizer, judge)


@asynccontextmanager
async def judge_of(
    env: EnvConfig, own: tuple[Path, Renderer], engine: EngineConfig, hardware: Hardware
) -> AsyncIterator[Asked | None]:
    """What judges the answers in an environment, as ``OpenedJudge``; None where nothing needs to."""
    options = read_options(env.name, env.options)
    if not isinstance(options, JudgeSource):
        yield None
        return
    async with OpenedJudge(options, own, engine, hardware) as judge:
        yield judge
    tell_bias(judge.seen)


def problem_set(config: RLConfig, model_dir: Path, tokenizer: Tokenizer, judge: Asked | None = None) -> ProblemSet:
    """The problems of a configuration for a model; those that need a ``judge`` can be shown without, not played.

    Raises:
        ConfigError: the environment or an option is wrong, or a library is missing.
        DataError: a data set cannot be used.
    """
    renderer = renderer_of(config, model_dir, tokenizer)
    return problems(config.env.name, config.env.options, renderer, config.seed, wiring.dataset_store(), judge)


def described(config: RLConfig, found: ProblemSet) -> dict[str, Any]:
    """The problems by digest and counts, never what they say; with the data sets that they were read from.

    The digest is the same for the same environment, options, seed and data sets.
    """
    options, store = read_options(config.env.name, config.env.options), wiring.dataset_store()
    deciding = {"env": config.env.model_dump(mode="json"), "seed": config.seed, "sources": sources(config)}
    read = [store.describe(source) for source in getattr(options, "sources", ())]
    return {
        "name": config.env.name,
        "sha256": files.sha256_json(deciding),
        "num_train": found.num_train,
        "num_held_out": len(found.held_out),
        "read": [{"name": Path(one.source).name, "sha256": one.sha256, "num_bytes": one.num_bytes} for one in read],
    }


def sources(config: RLConfig) -> Sequence[str]:
    """What decides the problems and rewards beside the options and our code.

    The digests of the data sets that the environment's options name, as ``sources``; what else the options say that
    they stand on, as ``identity()``, such as the source of a function or the version of a library; and the judge.

    Raises:
        ConfigError: a function or a library cannot be found.
        DataError: there is no data set of that name.
        ModelError: there is no such judge.
    """
    store, options = wiring.dataset_store(), read_options(config.env.name, config.env.options)
    found = [store.describe(source).sha256 for source in getattr(options, "sources", ())]
    if isinstance(options, Identified):
        found += options.identity()
    return [*found, judge_identity(options)] if isinstance(options, JudgeSource) else found
