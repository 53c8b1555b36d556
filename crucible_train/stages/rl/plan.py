"""``--dry-run`` of reinforcement learning: what is asked, which stages are cached, how much is sampled and trained."""

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path

from crucible_train import terminal, wiring
from crucible_train.config.overrides import to_yaml
from crucible_train.config.redaction import hide_secrets
from crucible_train.loop.training import peak_rate
from crucible_train.ports import Tokenizer
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.renderers import FastTokenizer
from crucible_train.rl.problem_set import ProblemSet
from crucible_train.stages.chain import Chain
from crucible_train.stages.chat_format import with_noted_date
from crucible_train.stages.prepare_model import at_hand, description_of
from crucible_train.stages.rl import preflight
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
    source = at_hand(config.model)
    chain = _Chain(config, hardware)
    chain.look(source)
    description = description_of(config.model, source)
    if description is None:
        terminal.field("problems", "known once the model is here: the first run fetches it")
        chain.chain.show()
        return
    tokenizer = FastTokenizer.from_folder(description)
    found = problem_set(chain.config, description, tokenizer)
    asyncio.run(show_problems(found, tokenizer))
    chain.chain.show()
    show_cost(config, hardware, description)


async def show_problems(found: ProblemSet, tokenizer: Tokenizer, num_shown: int = _NUM_SHOWN) -> None:
    """Print how many problems there are, and the first prompts as the model sees them."""
    num = "drawn without end" if found.num_train is None else f"{found.num_train:,} to train on"
    terminal.field("problems", f"{num}, {len(found.held_out)} held out")
    terminal.say("")
    for index in range(num_shown):
        builder = found.train(index)
        (env,) = await builder.make_envs(1)
        try:
            turn = await env.initial_turn()
        finally:
            await env.close()
        terminal.say(f"{builder.problem}, {turn.prompt.length} tokens:", style="bold")
        terminal.say(tokenizer.decode(turn.prompt.to_ints()) + "\n")


@dataclass
class _Chain:
    """The stages of a run; ``config`` has the date that its chat format writes, once that is known."""

    config: RLConfig
    hardware: Hardware
    chain: Chain = field(default_factory=Chain)

    def look(self, source: Path | None) -> None:
        """Follow the flow's chain as far as its outputs are known."""
        chain = self.chain
        chain.model(self.config, source)
        if "model" in chain.refs:
            self.config = with_noted_date(self.config, chain.refs)
        config, hardware = self.config, self.hardware
        chain.stage("evaluate before", "before", EvaluateRL(config, hardware), ("model",), config.cache_dir)
        train = TrainRL(config, hardware, Path())
        # what was measured before is no part of its key
        chain.stage("train", "trained", train, ("model",), config.cache_dir)
        chain.stage("evaluate after", "after", EvaluateRL(config, hardware), ("model", "trained"), config.cache_dir)
        if "model" in chain.refs:
            name = run_id(config, "rl", config.env.name, train.key({"model": chain.refs["model"]}))
            package = PackageRL(config, hardware, Path(name))
            chain.stage("package", "package", package, ("model", "before", "trained", "after"), config.cache_dir)
        else:
            chain.states.append(("package", "to run"))


def show_cost(config: RLConfig | DistillConfig, hardware: Hardware, description: Path) -> None:
    """Print what a step samples and trains, and the memory it takes."""
    train, rollout = config.train, config.rollout
    answers = train.groups_per_batch * train.num_generations
    estimate = wiring.estimate(description, config.peft, config.engine, hardware, rollout.max_tokens, answers)
    rate = peak_rate(train, config.peft, estimate.hidden_size)
    terminal.field(
        "training",
        f"{train.max_steps} steps of {train.groups_per_batch} problems x {train.num_generations} answers of up to "
        f"{rollout.max_tokens} tokens, peak rate {rate:g}; "
        f"{estimate.num_trained_params / 1e6:,.1f} of {estimate.num_params / 1e6:,.1f} million weights",
    )
    writing = train.max_steps * rollout.max_tokens * estimate.write_step_s
    terminal.field(
        "estimate",
        f"up to {writing / 60:.0f} min of writing answers where each is as long as it may be and one turn long; "
        f"{estimate.peak_bytes / 2**30:.1f} GiB of memory",
    )
