"""What every training flow's body ends with: the run's folder, and the artifacts that the next method goes on from."""

from dataclasses import dataclass
from pathlib import Path

from crucible_train.types import ArtifactRef


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run.

    Attributes:
        run_dir: its folder.
        model: the model it began from.
        trained: the weights it published.
        package: the published model and its report.
    """

    run_dir: Path
    model: ArtifactRef
    trained: ArtifactRef
    package: ArtifactRef
