"""What can be found wrong with a configuration of supervised fine-tuning before anything is run."""

from collections.abc import Callable, Iterator

from crucible_train.data.comparisons import SUPERVISED
from crucible_train.evaluation.scorers import SCORERS
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import preflight, win_rate_preflight
from crucible_train.stages.prepare_data import source_of

STEP_METRICS = ("optim/grad_norm", "optim/learning_rate", "progress/epoch", "progress/num_tokens", "train/loss")
"""What every step measures."""
HELD_OUT_METRICS = ("eval/bits_per_byte", "eval/nll", "eval/perplexity")
"""What an evaluation measures where rows are held out."""

Problems = Iterator[str]


def check(config: SFTConfig, tell: Callable[[str], None] = preflight.tell) -> None:
    """Look at everything that can be looked at cheaply; notes go to ``tell``.

    Raises:
        ConfigError: something is wrong; all that is wrong is reported together.
    """
    preflight.check_all(config, _CHECKS, tell)


def _names(config: SFTConfig) -> Problems:
    yield from preflight.names(config)
    scorers = ["auto", *SCORERS]
    for name in config.eval.scorers:
        if name not in scorers:
            yield f"eval.scorers: {name!r} is unknown; known are {', '.join(scorers)}"


def _secrets(config: SFTConfig) -> Problems:
    fields = ("model", "dataset", "output_dir", "cache_dir")
    values: dict[str, object] = {field: getattr(config, field) for field in fields}
    values |= {"data.eval_split": config.data.eval_split, "win_rate.judge": config.win_rate.judge}
    yield from preflight.secrets(values)


def _watched_metric(config: SFTConfig) -> Problems:
    name, has_held_out = config.eval.metric_for_best_model, config.data.eval_split != 0
    # what ``auto`` will choose is known only with the rows, so the watched score is to be named
    chosen = (*(scorer for scorer in config.eval.scorers if scorer != "auto"), "ended")
    scores = [f"eval/{score}" for score in chosen] if config.eval.num_step_samples else []
    measured = sorted([*STEP_METRICS, *((*HELD_OUT_METRICS, *scores) if has_held_out else ())])
    is_needed = config.checkpoint.load_best_model_at_end or config.eval.early_stopping_patience is not None
    if name not in measured and (is_needed or name not in HELD_OUT_METRICS):
        yield f"eval.metric_for_best_model: {name!r} is not measured; measured are {', '.join(measured)}"


def _data(config: SFTConfig) -> Problems:
    columns, table = list(config.data.columns), SUPERVISED if config.data.format == "auto" else None
    yield from preflight.first_row("dataset", source_of(config.dataset), columns, table)
    if isinstance(config.data.eval_split, str):
        yield from preflight.first_row("data.eval_split", config.data.eval_split, columns, table)
    yield from win_rate_preflight.prompts(config.win_rate, config.data.eval_split)


_CHECKS = (
    _secrets,
    _names,
    _watched_metric,
    preflight.places,
    preflight.checkpoint,
    preflight.model,
    _data,
    win_rate_preflight.judge,
    preflight.device,
)
