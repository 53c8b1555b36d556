"""Distillation as a Prefect flow.

    python -m flows.distill [--config FILE.yaml] [field=value ...]

    prepare model ─┬─ evaluate (before) ── train ── evaluate (after) ── package
    prepare teacher┘

A stage whose inputs, configuration and code have not changed is found, not run again.
"""

if __name__ == "__main__":  # answers wrong input, and starts a server, before anything heavy is imported
    from flows.start import distill as run

    run()

import time
from pathlib import Path

from prefect import flow

from crucible_train import terminal, wiring
from crucible_train.recipes.distill import DistillConfig
from crucible_train.stages import run_directory
from crucible_train.stages.chat_format import settled
from crucible_train.stages.distill.teachers import input_name
from crucible_train.stages.distill.train import TrainDistill
from crucible_train.tracking.ending import at_work
from flows.artifacts import publish_distill
from flows.stopping import stoppable
from flows.trained import Trained, hand_over
from tasks.distill import evaluate, package, train
from tasks.model import prepare_model


@flow(name="distill", flow_run_name="distill-{config.model}-{config.env.name}", persist_result=False)
@stoppable
async def distill(config: DistillConfig = DistillConfig()) -> str:
    """Train a model to be as its teacher and show what it gained; returns the run directory."""
    return str((await distil(config)).run_dir)


async def distil(config: DistillConfig) -> Trained:
    """Learn from teachers, from the models to the packaged one, as part of whatever flow runs."""
    started = time.monotonic()
    hardware = wiring.hardware(config.engine)
    terminal.field("machine", hardware.description)
    models = {"model": (await prepare_model(config)).ref}
    for field, teacher in config.teacher_configs.items():
        if teacher.model is not None:
            of_teacher = config.model_copy(update={"model": teacher.model})
            models[input_name(field)] = (await prepare_model(of_teacher)).ref
    config = await settled(config, models)
    before = (await evaluate(config, hardware, models, "before")).ref

    inputs = models | {"before": before}
    key = TrainDistill(config, hardware, Path()).key(inputs)
    run_id = run_directory.run_id(config, "distill", config.env.name, key)
    run_dir = run_directory.place(config, run_id)
    terminal.field("run", str(run_dir))
    run_directory.begin(run_dir, config)
    with at_work(run_dir):
        trained = (await train(config, hardware, run_dir, inputs)).ref

        after = (await evaluate(config, hardware, models | {"trained": trained}, "after")).ref
        refs = inputs | {"trained": trained, "after": after}
        refs["package"] = (await package(config, hardware, run_dir, refs)).ref
        await hand_over(config, hardware, run_dir, refs, started, publish_distill)
    return Trained(run_dir, models["model"], trained, refs["package"])
