"""What can be found wrong with a configuration before anything is run: names, places, model files, the first row.

Nothing is fetched from a hub here, and torch is imported only where a GPU is asked for.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from safetensors import SafetensorError, safe_open

from crucible_train import wiring
from crucible_train.checkpoints import MANIFEST
from crucible_train.config.redaction import hide_secrets
from crucible_train.data.conversations import detect
from crucible_train.errors import ConfigError, CrucibleError, DataError
from crucible_train.evaluation.scorers import SCORERS
from crucible_train.recipes.sft import SFTConfig
from crucible_train.renderers import find_renderer, list_renderers
from crucible_train.stages.chat_format import renderer_spec
from crucible_train.stages.prepare_data import source_of
from crucible_train.stages.prepare_model import BUILT_IN, at_hand

STEP_METRICS = ("optim/grad_norm", "optim/learning_rate", "progress/epoch", "progress/num_tokens", "train/loss")
"""What every step measures."""
HELD_OUT_METRICS = ("eval/bits_per_byte", "eval/nll", "eval/perplexity")
"""What an evaluation measures where rows are held out."""

Problems = Iterator[str]


def check(config: SFTConfig) -> None:
    """Look at everything that can be looked at cheaply.

    Raises:
        ConfigError: something is wrong; all that is wrong is reported together.
    """
    problems = [problem for examine in _CHECKS for problem in _found(examine, config)]
    if problems:
        raise ConfigError(problems)


def _found(examine: Callable[[SFTConfig], Problems], config: SFTConfig) -> Problems:
    try:
        yield from examine(config)
    except CrucibleError as error:
        yield from str(error).splitlines()


def _names(config: SFTConfig) -> Problems:
    yield from wiring.check_names(config.report_to)
    if not _is_renderer(config.data.renderer):
        known = ", ".join(["auto", *list_renderers()])
        yield f"data.renderer: {config.data.renderer!r} is unknown; known are {known}"
    scorers = ["auto", *SCORERS]
    for name in config.eval.scorers:
        if name not in scorers:
            yield f"eval.scorers: {name!r} is unknown; known are {', '.join(scorers)}"


def _secrets(config: SFTConfig) -> Problems:
    """Prefect keeps a run's parameters, so none may hold a secret."""
    for field in ("model", "dataset", "output_dir", "cache_dir", "data.eval_split"):
        value = config.data.eval_split if field == "data.eval_split" else getattr(config, field)
        if _holds_secret(value):
            yield (
                f"{field}: {hide_secrets(value)}: it holds a secret, which would be kept with the run; give "
                "credentials through the environment or the library's own settings file"
            )


def _holds_secret(value: object) -> TypeGuard[str]:
    """Whether an address is refused for its secret, and so not tried."""
    return isinstance(value, str) and hide_secrets(value) != value


def _watched_metric(config: SFTConfig) -> Problems:
    name, has_held_out = config.eval.metric_for_best_model, config.data.eval_split != 0
    # what ``auto`` will choose is known only with the rows, so the watched score is to be named
    chosen = (*(scorer for scorer in config.eval.scorers if scorer != "auto"), "ended")
    scores = [f"eval/{score}" for score in chosen] if config.eval.num_step_samples else []
    measured = sorted([*STEP_METRICS, *((*HELD_OUT_METRICS, *scores) if has_held_out else ())])
    is_needed = config.checkpoint.load_best_model_at_end or config.eval.early_stopping_patience is not None
    if name not in measured and (is_needed or name not in HELD_OUT_METRICS):
        yield f"eval.metric_for_best_model: {name!r} is not measured; measured are {', '.join(measured)}"


def _places(config: SFTConfig) -> Problems:
    yield from _unwritable("the folder for this machine's own notes", str(wiring.local_cache()))
    yield from _unwritable("output_dir", config.output_dir)
    if "://" not in config.cache_dir:
        yield from _unwritable("cache_dir", config.cache_dir)
        return
    if not _holds_secret(config.cache_dir):
        wiring.blob_store(config.cache_dir).read_manifest("preflight")  # whether it answers


def _checkpoint(config: SFTConfig) -> Problems:
    wanted = config.checkpoint.resume_from_checkpoint
    if wanted not in ("auto", "never") and not (Path(wanted).expanduser() / MANIFEST).is_file():
        yield f"checkpoint.resume_from_checkpoint: {wanted}: there is no such checkpoint"


def _model(config: SFTConfig) -> Problems:
    source = at_hand(config.model) if config.model != BUILT_IN and not _holds_secret(config.model) else None
    if source is not None:
        for weights in sorted(source.glob("*.safetensors")):
            yield from _unreadable(weights)
        if source.is_dir() and _is_renderer(config.data.renderer):
            renderer_spec(config, source)


def _is_renderer(name: str) -> bool:
    return name == "auto" or find_renderer(name) is not None


def _data(config: SFTConfig) -> Problems:
    yield from _first_row("dataset", source_of(config.dataset), config)
    if isinstance(config.data.eval_split, str):
        yield from _first_row("data.eval_split", config.data.eval_split, config)


def _device(config: SFTConfig) -> Problems:
    if config.engine.device == "cuda":
        wiring.hardware(config.engine)
    yield from ()


_CHECKS = (_secrets, _names, _watched_metric, _places, _checkpoint, _model, _data, _device)


def _first_row(field: str, source: str, config: SFTConfig) -> Problems:
    """Whether there is a row, and columns that a conversation can be read from."""
    if _is_hub_id(source) or _holds_secret(source):
        return
    try:
        row = next(iter(wiring.dataset_store().rows(source)), None)
    except DataError as error:
        yield f"{field}: {str(error).removeprefix('dataset: ')}"
        return
    if row is None:
        yield f"{field}: {hide_secrets(source)}: it holds no rows"
    elif row.values is not None and config.data.format == "auto":
        try:
            detect([*config.data.columns, *row.values])
        except DataError as error:
            yield f"{field}: {hide_secrets(source)}: {error}"


def _unreadable(weights: Path) -> Problems:
    """Whether a file's header is sound and the file as long as the header says."""
    try:
        safe_open(weights, framework="numpy")
    except (SafetensorError, OSError) as error:
        text = str(error)
        yield f"model: {weights}: {text[:1].lower()}{text[1:]}"


def _unwritable(field: str, folder: str) -> Problems:
    """Whether a folder can be made there, or written to, as far as can be seen without doing it."""
    path = Path(folder).expanduser().absolute()
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not there.is_dir():
        yield f"{field}: {folder}: {there} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"{field}: {folder}: {there} is not to be written to"


def _is_hub_id(text: str) -> bool:
    """Whether a text can only be the name of something on a hub: ``name`` or ``owner/name``, and no such file."""
    if "://" in text or text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(text).exists():
        return False
    return not PurePosixPath(text).suffix.removeprefix(".").isalpha()
