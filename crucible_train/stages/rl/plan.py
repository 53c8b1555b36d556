"""``--dry-run`` of reinforcement learning: what is asked, which stages are cached, how much is sampled and trained."""

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crucible_train import terminal, wiring
from crucible_train.config.overrides import to_yaml
from crucible_train.config.redaction import hide_secrets
from crucible_train.recipes.rl import RLConfig
from crucible_train.renderers import FastTokenizer
from crucible_train.stages.base import Stage, peek
from crucible_train.stages.chat_format import with_noted_date
from crucible_train.stages.prepare_model import PrepareModel, at_hand, description_of, external
from crucible_train.stages.rl import preflight
from crucible_train.stages.rl.cost import show_cost, show_problems
from crucible_train.stages.rl.evaluate import EvaluateRL
from crucible_train.stages.rl.package import PackageRL
from crucible_train.stages.rl.problems import problem_set
from crucible_train.stages.rl.train import TrainRL
from crucible_train.stages.run_directory import run_id
from crucible_train.types import ArtifactRef, Hardware

_NUM_SHOWN = 2


def show_plan(config: RLConfig) -> None:
    """Print the plan of a run. Nothing is sampled, trained or stored.

    Raises:
        CrucibleError: what would stop the run before its first step.
    """
    preflight.check(config)
    sys.stdout.write(hide_secrets(to_yaml(config)) + "\n")
    hardware = wiring.hardware(config.engine)
    terminal.field("machine", hardware.description)
    source = at_hand(config.model)
    chain = _Chain(config, hardware)
    chain.look(source)
    description = description_of(config.model, source)
    if description is None:
        terminal.field("problems", "known once the model is here: the first run fetches it")
        chain.show()
        return
    tokenizer = FastTokenizer.from_folder(description)
    found = problem_set(chain.config, description, tokenizer)
    asyncio.run(show_problems(found, tokenizer, _NUM_SHOWN))
    chain.show()
    show_cost(config.train, config.peft, config.engine, hardware, config.rollout.max_tokens, description)


@dataclass
class _Chain:
    """The stages of a run, and for each whether its output is there already."""

    config: RLConfig
    hardware: Hardware
    refs: dict[str, ArtifactRef] = field(default_factory=dict)
    states: list[tuple[str, str]] = field(default_factory=list)

    def look(self, source: Path | None) -> None:
        """Follow the flow's chain as far as its outputs are known."""
        if source is None:
            self.states.append(("prepare model", "to run: fetch it"))
        elif source.is_dir():
            self.refs["model"] = external(source)
            self.states.append(("prepare model", f"nothing to do: {source}"))
        else:
            self._stage("prepare model", "model", PrepareModel(self.config, source), ())
        if "model" in self.refs:
            self.config = with_noted_date(self.config, self.refs)
        config, hardware = self.config, self.hardware
        self._stage("evaluate before", "before", EvaluateRL(config, hardware), ("model",))
        train = TrainRL(config, hardware, Path())
        self._stage("train", "trained", train, ("model",))  # what was measured before is no part of its key
        self._stage("evaluate after", "after", EvaluateRL(config, hardware), ("model", "trained"))
        if "model" in self.refs:
            name = run_id(config, "rl", config.env.name, train.key({"model": self.refs["model"]}))
            package = PackageRL(config, hardware, Path(name))
            self._stage("package", "package", package, ("model", "before", "trained", "after"))
        else:
            self.states.append(("package", "to run"))

    def show(self) -> None:
        """Print a line a stage."""
        for number, (name, state) in enumerate(self.states):
            terminal.field("stages" if number == 0 else "", f"{name:<16} {state}")

    def _stage(self, name: str, output: str, stage: Stage[Any], inputs: tuple[str, ...]) -> None:
        found = None
        if all(key in self.refs for key in inputs):
            found = peek(stage, {key: self.refs[key] for key in inputs}, self.config.cache_dir)
        if found is not None:
            self.refs[output] = found
        self.states.append((name, "cached" if found is not None else "to run"))
