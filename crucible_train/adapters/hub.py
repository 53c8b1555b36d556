"""Models and data sets from the Hugging Face hub."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging

from crucible_train.adapters.reasons import in_one_line
from crucible_train.errors import DataError, ModelError

_ANSWER_LIMIT_S = 5.0


def downloaded_model(model: str) -> Path | None:
    """The local folder of a hub model that was fetched before; asks nobody."""
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def download_model(model: str, patterns: Sequence[str]) -> Path:
    """The local folder of a hub model, fetched where it is not there yet; only files that match ``patterns``.

    Raises:
        ModelError: the hub does not give it.
    """
    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model: {model}: not a folder here, and the hub does not give it either: {reason}") from error


def load_dataset(name: str) -> Any:
    """The splits of a hub data set. Where the hub cannot be reached, a copy that was fetched before is taken at once.

    Raises:
        DataError: the hub does not give it, and it was not fetched before.
    """
    import datasets  # noqa: PLC0415 - heavy, and only hub ids need it

    datasets.disable_progress_bars()
    silence = _why_silent(name)
    try:
        with _offline(datasets.config) if silence else contextlib.nullcontext():
            return datasets.load_dataset(name)
    except Exception as error:
        reason = silence or (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"dataset: {name}: not a file here, and the hub does not give it either: {reason}") from error


def _why_silent(name: str) -> str:
    """Why the hub gives no answer at all; empty where it gives one, be it a refusal.

    Asked once and without a second try: loading a data set asks six times in half a minute, and says so each time.
    """
    try:
        HfApi().dataset_info(name, timeout=_ANSWER_LIMIT_S)
    except (HfHubHTTPError, HFValidationError):
        return ""
    except Exception as error:  # noqa: BLE001 - the library's ways to the network have errors of their own
        return f"it cannot be reached: {in_one_line(error)}"
    return ""


@contextlib.contextmanager
def _offline(datasets_config: Any) -> Iterator[None]:
    """Tell the hub's libraries to ask nobody, and to say nothing of it."""
    before = constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE, hub_logging.get_verbosity()
    constants.HF_HUB_OFFLINE = datasets_config.HF_HUB_OFFLINE = True
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE, level = before
        hub_logging.set_verbosity(level)
