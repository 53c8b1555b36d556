"""What every training flow's body ends with: the run's folder, and the artifacts that the next method goes on from."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from crucible_train import wiring
from crucible_train.config.run_config import RunConfig
from crucible_train.stages import run_directory
from crucible_train.tracking.ending import conclude
from crucible_train.types import ArtifactRef, Hardware
from flows.artifacts import publish_trackers


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


async def hand_over(
    config: RunConfig,
    hardware: Hardware,
    run_dir: Path,
    refs: Mapping[str, ArtifactRef],
    started: float,
    publish: Callable[[Path], Awaitable[None]],
) -> None:
    """Give what a run made to its folder, to the flow run's page and to its trackers.

    Args:
        config: the whole configuration.
        hardware: where it ran.
        run_dir: its folder.
        refs: all that it read and made, ``package`` among it.
        started: when the flow's body began, by the monotonic clock.
        publish: shows a packaged run of this method on the flow run's page.
    """
    folder = wiring.blob_store(config.cache_dir).fetch(refs["package"])
    is_new = run_directory.finish(run_dir, folder, config, refs, hardware, time.monotonic() - started)
    await publish(folder)
    run_directory.report(run_dir, folder, is_new=is_new)
    await publish_trackers(await conclude(run_dir, config))
