"""What can be found wrong with a configuration of reinforcement learning before anything is run."""

from collections.abc import Callable, Iterator, Sequence

from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.rl.config import EnvConfig
from crucible_train.rl.environments import read_options
from crucible_train.stages import preflight
from crucible_train.stages.rl.problems import sources

STEP_METRICS = (
    "optim/learning_rate",
    "progress/num_problems",
    "progress/num_tokens",
    "reward/mean",
    "sample/answer_tokens",
)
"""What every step measures; an environment's own parts of the reward come besides."""

Problems = Iterator[str]


def check(config: RLConfig, tell: Callable[[str], None] = preflight.tell) -> None:
    """Look at everything that can be looked at cheaply; notes go to ``tell``.

    Raises:
        ConfigError: something is wrong; all that is wrong is reported together.
    """
    preflight.check_all(config, _CHECKS, tell)


def addresses(config: RLConfig | DistillConfig) -> dict[str, object]:
    """What a configuration with an environment names by address, and could hold a secret."""
    values: dict[str, object] = {field: getattr(config, field) for field in ("model", "output_dir", "cache_dir")}
    return values | dict(preflight.texts("env.options", config.env.options))


def environment(env: EnvConfig, sources: Callable[[], object]) -> Problems:
    """Its options, and, where none of them holds a secret, the ``sources`` they name."""
    read_options(env.name, env.options)
    yield from ()
    if not any(preflight.holds_secret(text) for _, text in preflight.texts("env.options", env.options)):
        sources()


def watched_metric(name: str, step_metrics: Sequence[str]) -> Problems:
    """Rewards have parts of their own, so only a metric of an area that is never measured is known to be wrong."""
    if name.partition("/")[0] not in ("eval", "reward", "sample", "train", "optim", "progress"):
        measured = ", ".join(["eval/reward", *step_metrics])
        yield f"eval.metric_for_best_model: {name!r} is not measured; measured are {measured}"


def _secrets(config: RLConfig) -> Problems:
    return preflight.secrets(addresses(config))


def _environment(config: RLConfig) -> Problems:
    return environment(config.env, lambda: sources(config))


def _watched_metric(config: RLConfig) -> Problems:
    return watched_metric(config.eval.metric_for_best_model, STEP_METRICS)


_CHECKS = (
    _secrets,
    preflight.names,
    _environment,
    _watched_metric,
    preflight.places,
    preflight.checkpoint,
    preflight.model,
    preflight.device,
)
