"""Names in a configuration that only the tables of adapters, renderers and scorers can judge, checked before a run."""

from crucible_train import wiring
from crucible_train.errors import ConfigError
from crucible_train.evaluation.scorers import SCORERS
from crucible_train.recipes.sft import SFTConfig
from crucible_train.renderers import list_renderers


def check(config: SFTConfig) -> None:
    """Check every name.

    Raises:
        ConfigError: one is unknown; all are reported together.
    """
    problems = wiring.check_names(config.report_to)
    renderers = ["auto", *list_renderers()]
    if config.data.renderer not in renderers:
        problems.append(f"data.renderer: {config.data.renderer!r} is unknown; known are {', '.join(renderers)}")
    scorers = ["auto", *SCORERS]
    problems += [
        f"eval.scorers: {name!r} is unknown; known are {', '.join(scorers)}"
        for name in config.eval.scorers
        if name not in scorers
    ]
    if problems:
        raise ConfigError(problems)
