"""What can be found wrong with a configuration of learning from preferences before anything is run."""

from collections.abc import Callable, Iterator

from crucible_train.data.preferences import PREFERENCES
from crucible_train.preference.measuring import FIGURES
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.stages import preflight, win_rate_preflight
from crucible_train.stages.dpo.prepare_data import source_of

STEP_METRICS = (
    "optim/grad_norm",
    "optim/learning_rate",
    "progress/epoch",
    "progress/num_tokens",
    *(f"train/{name}" for name in ("loss", *FIGURES)),
)
"""What every step measures; ``kl`` only where there is a reference, and no log-probability of a reward model."""
HELD_OUT_METRICS = tuple(f"eval/{name}" for name in ("loss", *FIGURES))
"""What an evaluation measures where rows are held out."""

Problems = Iterator[str]


def check(config: DPOConfig, tell: Callable[[str], None] = preflight.tell) -> None:
    """Look at everything that can be looked at cheaply; notes go to ``tell``.

    Raises:
        ConfigError: something is wrong; all that is wrong is reported together.
    """
    preflight.check_all(config, _CHECKS, tell)


def _secrets(config: DPOConfig) -> Problems:
    fields = ("model", "dataset", "output_dir", "cache_dir")
    values: dict[str, object] = {field: getattr(config, field) for field in fields}
    values |= {"data.eval_split": config.data.eval_split, "win_rate.judge": config.win_rate.judge}
    yield from preflight.secrets(values)


def _watched_metric(config: DPOConfig) -> Problems:
    name, has_held_out = config.eval.metric_for_best_model, config.data.eval_split != 0
    lacking = [] if config.preference.needs_reference else ["kl"]
    lacking += ["chosen_logprob", "rejected_logprob"] if config.preference.is_reward_model else []
    is_without = {f"{area}/{figure}" for area in ("train", "eval") for figure in lacking}
    measured = sorted({*STEP_METRICS, *(HELD_OUT_METRICS if has_held_out else ())} - is_without)
    is_needed = config.checkpoint.load_best_model_at_end or config.eval.early_stopping_patience is not None
    if name not in measured and (is_needed or name not in HELD_OUT_METRICS):
        yield f"eval.metric_for_best_model: {name!r} is not measured; measured are {', '.join(measured)}"


def _data(config: DPOConfig) -> Problems:
    columns, table = list(config.data.columns), PREFERENCES if config.data.format == "auto" else None
    yield from preflight.first_row("dataset", source_of(config.dataset), columns, table)
    if isinstance(config.data.eval_split, str):
        yield from preflight.first_row("data.eval_split", config.data.eval_split, columns, table)
    yield from win_rate_preflight.prompts(config.win_rate, config.data.eval_split)
    if config.data.format == "labelled" and not config.preference.takes_unpaired:
        yield (
            f"preference.loss_type: {config.preference.loss_type} compares two completions, and labelled rows have "
            "one; take kto"
        )


_CHECKS = (
    _secrets,
    preflight.names,
    _watched_metric,
    preflight.places,
    preflight.checkpoint,
    preflight.model,
    _data,
    win_rate_preflight.judge,
    preflight.device,
)
