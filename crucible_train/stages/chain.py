"""A flow's chain of stages, followed as far as their outputs are in the store: for ``--dry-run``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crucible_train import terminal
from crucible_train.config.run_config import RunConfig
from crucible_train.stages.base import Stage, peek
from crucible_train.stages.prepare_model import PrepareModel, external
from crucible_train.types import ArtifactRef


@dataclass
class Chain:
    """The stages of a run, and for each whether its output is there already.

    Attributes:
        refs: outputs that are known, by name.
        states: a line a stage: its name, and what is to be done.
    """

    refs: dict[str, ArtifactRef] = field(default_factory=dict)
    states: list[tuple[str, str]] = field(default_factory=list)

    def model(self, config: RunConfig, source: Path | None, output: str = "model") -> None:
        """The preparation of a model; ``source`` is where it lies, None where it is to be fetched."""
        name = f"prepare {output.replace('_', ' ')}"
        if source is None:
            self.states.append((name, "to run: fetch it"))
        elif source.is_dir():
            self.refs[output] = external(source)
            self.states.append((name, f"nothing to do: {source}"))
        else:
            self.stage(name, output, PrepareModel(config, source), (), config.cache_dir)

    def stage(self, name: str, output: str, stage: Stage[Any], inputs: Sequence[str], cache_dir: str) -> None:
        """A stage whose inputs are these outputs."""
        found = None
        if all(key in self.refs for key in inputs):
            found = peek(stage, {key: self.refs[key] for key in inputs}, cache_dir)
        if found is not None:
            self.refs[output] = found
        self.states.append((name, "cached" if found is not None else "to run"))

    def show(self) -> None:
        """Print a line a stage."""
        for number, (name, state) in enumerate(self.states):
            terminal.field("stages" if number == 0 else "", f"{name:<16} {state}")
