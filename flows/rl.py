"""Reinforcement learning as a Prefect flow.

    python -m flows.rl [--config FILE.yaml] [field=value ...]

    prepare model ── evaluate (before) ── train ── evaluate (after) ── package

A stage whose inputs, configuration and code have not changed is found, not run again.
"""

if __name__ == "__main__":  # answers wrong input, and starts a server, before anything heavy is imported
    from flows.start import rl as run

    run()

import time
from pathlib import Path

from prefect import flow

from crucible_train import terminal, wiring
from crucible_train.recipes.rl import RLConfig
from crucible_train.stages import run_directory
from crucible_train.stages.chat_format import settled
from crucible_train.stages.rl.train import TrainRL
from crucible_train.tracking.ending import at_work
from flows.artifacts import publish_rl
from flows.stopping import stoppable
from flows.trained import Trained, hand_over
from tasks.model import prepare_model
from tasks.rl import evaluate, package, train


@flow(name="rl", flow_run_name="rl-{config.model}-{config.env.name}", persist_result=False)
@stoppable
async def rl(config: RLConfig = RLConfig()) -> str:
    """Train a model on its own answers and show what it gained; returns the run directory."""
    return str((await reinforce(config)).run_dir)


async def reinforce(config: RLConfig) -> Trained:
    """Learn from rewards, from the model to the packaged one, as part of whatever flow runs."""
    started = time.monotonic()
    hardware = wiring.hardware(config.engine)
    terminal.field("machine", hardware.description)
    model = (await prepare_model(config)).ref
    given = {"model": model}
    config = await settled(config, given)
    before = (await evaluate(config, hardware, given, "before")).ref

    inputs = given | {"before": before}
    run_id = run_directory.run_id(config, "rl", config.env.name, TrainRL(config, hardware, Path()).key(inputs))
    run_dir = run_directory.place(config, run_id)
    terminal.field("run", str(run_dir))
    run_directory.begin(run_dir, config)
    with at_work(run_dir):
        trained = (await train(config, hardware, run_dir, inputs)).ref

        after = (await evaluate(config, hardware, given | {"trained": trained}, "after")).ref
        refs = inputs | {"trained": trained, "after": after}
        refs["package"] = (await package(config, hardware, run_dir, refs)).ref
        await hand_over(config, hardware, run_dir, refs, started, publish_rl)
    return Trained(run_dir, model, trained, refs["package"])
