"""Models from the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from crucible_train.errors import ModelError


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
