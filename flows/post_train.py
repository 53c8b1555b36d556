"""A chain of methods as one Prefect flow.

    python -m flows.post_train [--config FILE.yaml] [field=value ...]

    sft ─ merge ─ dpo ─ merge ─ evaluate         by stages=[sft, dpo, evaluate], the default

Each method begins from the model of the one before it, its adapter merged into its base. A stage whose inputs,
configuration and code have not changed is found, not run again.
"""

if __name__ == "__main__":  # answers wrong input, and starts a server, before anything heavy is imported
    from flows.start import post_train as run

    run()

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prefect import flow

from crucible_train import terminal, wiring
from crucible_train.recipes.post_train import PostTrainConfig, chained
from crucible_train.stages import post_train as chain
from crucible_train.stages.chat_format import settled
from crucible_train.stages.run_directory import RECORD
from crucible_train.types import ArtifactRef
from flows.distill import distil
from flows.dpo import learn_preferences
from flows.rl import reinforce
from flows.sft import fine_tune
from flows.stopping import stoppable
from flows.trained import Trained
from tasks import sft as supervised
from tasks.model import merge, prepare_model

METHODS: Mapping[str, Callable[[Any], Awaitable[Trained]]] = {
    "sft": fine_tune,
    "dpo": learn_preferences,
    "distill": distil,
    "rl": reinforce,
}


@flow(name="post_train", flow_run_name="post_train-{config.model}", persist_result=False)
@stoppable
async def post_train(config: PostTrainConfig = PostTrainConfig()) -> str:
    """Train a model by several methods in turn and show what it gained; returns the folder of the chain's record."""
    base = model = (await prepare_model(chained(config, "sft", 1, config.model))).ref
    address = config.model
    stages: list[Mapping[str, Any]] = []
    evaluations: list[Any] = []
    for number, stage in enumerate(config.stages, 1):
        terminal.say("")
        terminal.field("stage", f"{number} of {len(config.stages)}: {stage}")
        if stage == "evaluate":
            evaluations.append(await _evaluate(config, base, model))
            continue
        done = await METHODS[stage](chained(config, stage, number, address))
        inputs = {"model": done.model, "trained": done.trained, "package": done.package}
        model = (await merge(chained(config, stage, number, address), inputs)).ref
        address = str(wiring.blob_store(config.cache_dir).fetch(model))
        stages.append({"stage": stage, "run_dir": str(done.run_dir), "model": model.model_dump()})
    folder = chain.keep(config, stages, evaluations, model)
    terminal.say("")
    terminal.field("model", address)
    terminal.field("record", str(folder / RECORD))
    return str(folder)


async def _evaluate(config: PostTrainConfig, base: ArtifactRef, model: ArtifactRef) -> Any:
    """Measure the model so far beside the first one, on the rows that supervised fine-tuning holds out."""
    own = chained(config, "sft", 0, config.model)
    hardware = wiring.hardware(own.engine)
    conversations = (await supervised.prepare_data(own)).ref
    own = await settled(own, {"model": base, "conversations": conversations})
    rendered = (await supervised.render(own, {"model": base, "conversations": conversations})).ref
    given = {"conversations": conversations, "rendered": rendered}
    before = (await supervised.evaluate(own, hardware, given | {"model": base}, "first")).ref
    after = (await supervised.evaluate(own, hardware, given | {"model": model}, "last")).ref
    store = wiring.blob_store(config.cache_dir)
    return chain.report(store.fetch(before), store.fetch(after), config.seed)
