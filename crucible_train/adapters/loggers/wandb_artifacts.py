"""What a run used and made, as W&B's artifacts: versions of a name, told apart by the digest of their content."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import wandb
from wandb.errors import CommError, Error
from wandb.sdk.artifacts.exceptions import WaitTimeoutError

from crucible_train.adapters.reasons import in_one_line
from crucible_train.ports import LoggedArtifact, LoggerUnavailable

_NOT_IN_NAMES = re.compile(r"[^\w.-]")
_LATER = re.compile(r"\b(?:408|429|5\d\d)\b|connection|time(?:d )?out", re.IGNORECASE)


def made_of(artifact: LoggedArtifact) -> wandb.Artifact:
    """An artifact of W&B: its files, or where there are none to send a reference that holds its digest.

    Two runs that used the same content so used the same version.
    """
    facts = {"kind": artifact.kind, "digest": artifact.digest, **artifact.facts}
    made = wandb.Artifact(_NOT_IN_NAMES.sub("-", artifact.name)[:128], type=artifact.kind, metadata=facts)
    if artifact.kind == "dataset" or artifact.path is None or artifact.is_input:
        made.add_reference(f"sha256:{artifact.digest}", name="content", checksum=False)
    elif artifact.path.is_dir():
        made.add_dir(str(artifact.path))
    else:
        made.add_file(str(artifact.path))
    return made


def aliases(artifact: LoggedArtifact) -> Sequence[str] | None:
    """Names for the version besides ``latest``, which W&B keeps itself."""
    return [alias for alias in artifact.aliases if alias != "latest"] or None


@contextmanager
def kept() -> Iterator[None]:
    """Raise LoggerUnavailable where the service did not take an artifact, but may later."""
    try:
        yield
    except (CommError, WaitTimeoutError, TimeoutError) as error:
        raise LoggerUnavailable(f"W&B: {in_one_line(error)}") from error
    except (ValueError, Error) as error:  # the library tells any failure of an upload by a text
        if not _LATER.search(str(error)):
            raise
        raise LoggerUnavailable(f"W&B: {in_one_line(error)}") from error
