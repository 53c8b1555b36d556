"""The chain of a flow's stages, followed as far as their outputs are known: what ``--dry-run`` shows of it."""

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
    """Stages in order, and for each whether its output is there already.

    Attributes:
        cache_dir: where outputs are kept.
        refs: the outputs that are there, by name.
        states: a line a stage.
    """

    cache_dir: str
    refs: dict[str, ArtifactRef] = field(default_factory=dict)
    states: list[tuple[str, str]] = field(default_factory=list)

    def model(self, config: RunConfig, source: Path | None, output: str = "model") -> None:
        """The stage that every flow begins with; ``source`` is where the model lies, if it is here."""
        name = f"prepare {output.replace('_', ' ')}"
        if source is None:
            self.states.append((name, "to run: fetch it"))
        elif source.is_dir():
            self.refs[output] = external(source)
            self.states.append((name, f"nothing to do: {source}"))
        else:
            self.stage(name, output, PrepareModel(config, source), ())

    def stage(self, name: str, output: str, stage: Stage[Any], inputs: Sequence[str]) -> None:
        """One more stage: its name, what its output is called, and which outputs it reads."""
        found = None
        if self.has(inputs):
            found = peek(stage, {key: self.refs[key] for key in inputs}, self.cache_dir)
        if found is not None:
            self.refs[output] = found
        self.states.append((name, "cached" if found is not None else "to run"))

    def has(self, names: Sequence[str]) -> bool:
        """Whether these outputs are all there."""
        return all(name in self.refs for name in names)

    @property
    def to_run(self) -> list[str]:
        """The names of the stages that are still to be run."""
        return [name for name, state in self.states if state.startswith("to run")]

    def show(self) -> None:
        """Print a line a stage."""
        for number, (name, state) in enumerate(self.states):
            terminal.field("stages" if number == 0 else "", f"{name:<16} {state}")
