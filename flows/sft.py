"""Supervised fine-tuning as a Prefect flow.

    python -m flows.sft [--config FILE.yaml] [field=value ...]

    prepare model ─┬─ render ─┬─ evaluate (before) ─┬─ train ─ evaluate (after) ─ win rate ─ package
    prepare data ──┘          └─────────────────────┘

The win rate is left out where none is asked for. A stage whose inputs, configuration and code have not changed is
found, not run again.
"""

if __name__ == "__main__":  # answers wrong input, and starts a server, before anything heavy is imported
    from flows.start import sft as run

    run()

import time
from pathlib import Path

from prefect import flow

from crucible_train import terminal, wiring
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import run_directory
from crucible_train.stages.chat_format import settled
from crucible_train.stages.train import Train
from crucible_train.tracking.ending import at_work
from flows.artifacts import publish_sft
from flows.stopping import stoppable
from flows.trained import Trained, hand_over
from tasks.model import prepare_judge, prepare_model
from tasks.sft import evaluate, package, prepare_data, render, train, win_rate


@flow(name="sft", flow_run_name="sft-{config.model}-{config.dataset}", persist_result=False)
@stoppable
async def sft(config: SFTConfig = SFTConfig()) -> str:
    """Fine-tune a model on conversations and show what it gained; returns the run directory."""
    return str((await fine_tune(config)).run_dir)


async def fine_tune(config: SFTConfig) -> Trained:
    """Fine-tune, from the data set to the packaged model, as part of whatever flow runs."""
    started = time.monotonic()
    hardware = wiring.hardware(config.engine)
    terminal.field("machine", hardware.description)
    model = (await prepare_model(config)).ref
    judge = {} if config.win_rate.judge is None else {"judge": (await prepare_judge(config)).ref}
    conversations = (await prepare_data(config)).ref
    config = await settled(config, {"model": model, "conversations": conversations})
    rendered = (await render(config, {"model": model, "conversations": conversations})).ref
    given = {"model": model, "conversations": conversations, "rendered": rendered}
    before = (await evaluate(config, hardware, given, "before")).ref

    inputs = given | {"before": before}
    run_id = run_directory.run_id(config, "sft", config.dataset, Train(config, hardware, Path()).key(inputs))
    run_dir = run_directory.place(config, run_id)
    terminal.field("run", str(run_dir))
    run_directory.begin(run_dir, config)
    with at_work(run_dir):
        trained = (await train(config, hardware, run_dir, inputs)).ref

        after = (await evaluate(config, hardware, given | {"trained": trained}, "after")).ref
        refs = given | {"before": before, "trained": trained, "after": after}
        if config.win_rate.num_prompts:
            refs |= judge
            refs["win_rate"] = (await win_rate(config, hardware, refs)).ref
        refs["package"] = (await package(config, hardware, run_dir, refs)).ref
        await hand_over(config, hardware, run_dir, refs, started, publish_sft)
    return Trained(run_dir, model, trained, refs["package"])
