"""What ``--dry-run`` of a flow on problems shows: the first prompts as a model reads them, what a step takes."""

from collections.abc import Callable
from pathlib import Path

from crucible_train import terminal, wiring
from crucible_train.config.sections import EngineConfig, PeftConfig
from crucible_train.ports import Tokenizer
from crucible_train.rl.config import RLOptimConfig
from crucible_train.rl.problem_set import ProblemSet
from crucible_train.types import Hardware


async def show_problems(found: ProblemSet, tokenizer: Tokenizer, num_shown: int) -> None:
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


def show_cost(
    train: RLOptimConfig,
    peft: PeftConfig,
    engine: EngineConfig,
    hardware: Hardware,
    max_tokens: int,
    description: Path,
    rate_of: Callable[[int], float],
) -> None:
    """Print what a step samples and trains, and the memory it takes; ``rate_of`` a width is the peak rate."""
    answers = train.groups_per_batch * train.num_generations
    estimate = wiring.estimate(description, peft, engine, hardware, max_tokens, answers)
    terminal.field(
        "training",
        f"{train.max_steps} steps of {train.groups_per_batch} problems x {train.num_generations} answers of up to "
        f"{max_tokens} tokens, peak rate {rate_of(estimate.hidden_size):g}; "
        f"{estimate.num_trained_params / 1e6:,.1f} of {estimate.num_params / 1e6:,.1f} million weights",
    )
    writing = train.max_steps * max_tokens * estimate.write_step_s
    terminal.field(
        "estimate",
        f"up to {writing / 60:.0f} min of writing answers where each is as long as it may be and one turn long; "
        f"{estimate.peak_bytes / 2**30:.1f} GiB of memory",
    )
