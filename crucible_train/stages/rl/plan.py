"""``--dry-run`` of reinforcement learning: what is asked, which stages are cached, how much is sampled and trained."""

import asyncio
import sys
from functools import partial
from pathlib import Path

from crucible_train import terminal, wiring
from crucible_train.config.overrides import to_yaml
from crucible_train.config.redaction import hide_secrets
from crucible_train.recipes.rl import RLConfig, peak_rate
from crucible_train.renderers import FastTokenizer
from crucible_train.stages.chain import Chain
from crucible_train.stages.chat_format import with_noted_date
from crucible_train.stages.prepare_model import at_hand, description_of
from crucible_train.stages.rl import preflight
from crucible_train.stages.rl.cost import show_cost, show_problems
from crucible_train.stages.rl.evaluate import EvaluateRL
from crucible_train.stages.rl.package import PackageRL
from crucible_train.stages.rl.problems import problem_set
from crucible_train.stages.rl.train import TrainRL
from crucible_train.stages.run_directory import run_id
from crucible_train.types import Hardware

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
    for note in config.notes:
        terminal.field("note", note)
    source = at_hand(config.model)
    chain = Chain(config.cache_dir)
    config = _look(chain, config, hardware, source)
    description = description_of(config.model, source)
    if description is None:
        terminal.field("problems", "known once the model is here: the first run fetches it")
        chain.show()
        return
    tokenizer = FastTokenizer.from_folder(description)
    found = problem_set(config, description, tokenizer)
    asyncio.run(show_problems(found, tokenizer, _NUM_SHOWN))
    chain.show()
    show_cost(
        config.train,
        config.peft,
        config.engine,
        hardware,
        config.rollout.max_tokens,
        description,
        partial(peak_rate, config),
    )


def _look(chain: Chain, config: RLConfig, hardware: Hardware, source: Path | None) -> RLConfig:
    """Follow the flow's chain as far as its outputs are known; the configuration with the date it writes."""
    chain.model(config, source)
    if chain.has(["model"]):
        config = with_noted_date(config, chain.refs)
    chain.stage("evaluate before", "before", EvaluateRL(config, hardware), ["model"])
    train = TrainRL(config, hardware, Path())
    chain.stage("train", "trained", train, ["model"])  # what was measured before is no part of its key
    chain.stage("evaluate after", "after", EvaluateRL(config, hardware), ["model", "trained"])
    if chain.has(["model"]):
        name = run_id(config, "rl", config.env.name, train.key({"model": chain.refs["model"]}))
        package = PackageRL(config, hardware, Path(name))
        chain.stage("package", "package", package, ["model", "before", "trained", "after"])
    else:
        chain.states.append(("package", "to run"))
    return config
