"""Learning from preferences as a Prefect flow.

    python -m flows.dpo [--config FILE.yaml] [field=value ...]

    prepare model ─┬─ render ─ reference ─ evaluate (before) ─ train ─ evaluate (after) ─ win rate ─ package
    prepare data ──┘

The reference, the log-probabilities of the model before training, is left out where the loss does not read it, and the
win rate where none is asked for. A stage whose inputs, configuration and code have not changed is found, not run again.
"""

if __name__ == "__main__":  # answers wrong input, and starts a server, before anything heavy is imported
    from flows.start import dpo as run

    run()

import time
from pathlib import Path

from prefect import flow

from crucible_train import terminal, wiring
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.stages import run_directory
from crucible_train.stages.chat_format import settled
from crucible_train.stages.dpo.train import TrainDPO
from crucible_train.tracking.ending import at_work
from flows.artifacts import publish_dpo
from flows.stopping import stoppable
from flows.trained import Trained, hand_over
from tasks.dpo import evaluate, package, prepare_data, reference, render, train, win_rate
from tasks.model import prepare_judge, prepare_model


@flow(name="dpo", flow_run_name="dpo-{config.model}-{config.dataset}", persist_result=False)
@stoppable
async def dpo(config: DPOConfig = DPOConfig()) -> str:
    """Train a model on preferences and show what it gained; returns the run directory."""
    return str((await learn_preferences(config)).run_dir)


async def learn_preferences(config: DPOConfig) -> Trained:
    """Learn from preferences, from the data set to the packaged model, as part of whatever flow runs."""
    started = time.monotonic()
    hardware = wiring.hardware(config.engine)
    terminal.field("machine", hardware.description)
    model = (await prepare_model(config)).ref
    judge = {} if config.win_rate.judge is None else {"judge": (await prepare_judge(config)).ref}
    conversations = (await prepare_data(config)).ref
    config = await settled(config, {"model": model, "conversations": conversations})
    rendered = (await render(config, {"model": model, "conversations": conversations})).ref
    given = {"model": model, "conversations": conversations, "rendered": rendered}
    if config.preference.needs_reference:
        given["reference"] = (await reference(config, hardware, {"model": model, "rendered": rendered})).ref
    before = (await evaluate(config, hardware, given, "before")).ref

    inputs = given | {"before": before}
    run_id = run_directory.run_id(config, "dpo", config.dataset, TrainDPO(config, hardware, Path()).key(inputs))
    run_dir = run_directory.place(config, run_id)
    terminal.field("run", str(run_dir))
    run_directory.begin(run_dir, config)
    with at_work(run_dir):
        trained = (await train(config, hardware, run_dir, inputs)).ref

        after = (await evaluate(config, hardware, given | {"trained": trained}, "after")).ref
        refs = inputs | {"trained": trained, "after": after}
        if config.win_rate.num_prompts:
            refs |= judge
            refs["win_rate"] = (await win_rate(config, hardware, refs)).ref
        refs["package"] = (await package(config, hardware, run_dir, refs)).ref
        await hand_over(config, hardware, run_dir, refs, started, publish_dpo)
    return Trained(run_dir, model, trained, refs["package"])
