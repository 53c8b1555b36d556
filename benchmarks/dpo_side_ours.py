"""Our side of the DPO speed benchmark: the local engine through its port. Options: ``precision``.

The reference is found before the stopwatch starts, as TRL's is.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.dpo_workload import BETA, Pair, Workload
from benchmarks.sft_side import Stopwatch
from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.data.preference_tables import RenderedPreference, Side
from crucible_train.preference.measuring import Batch, PreferenceSet
from crucible_train.preference.reference import computed
from crucible_train.types import DPO, AdamParams, Hardware


async def main() -> None:
    workload, options = Workload.read(Path(sys.argv[1])), json.loads(sys.argv[2])
    preferences = [rendered(row, pair) for row, pair in enumerate(pair for step in workload.steps for pair in step)]
    loss, size = DPO(beta=BETA), len(workload.steps[0])
    lora = Lora(16, 32.0, 0.0, "all-linear")
    with tempfile.TemporaryDirectory() as states:
        settings = EngineSettings(Hardware("cpu", options["precision"], workload.num_threads), Path(states))
        scorer = LocalBackend(Path(workload.model), None, settings, lora)
        references = [row async for row in computed(scorer, preferences, with_mismatched=False)]
        await scorer.close()
        adapter = Path(workload.adapter) if workload.adapter else None
        backend = LocalBackend(
            Path(workload.model), None, settings, lora if workload.adapter else None, adapter=adapter
        )
        pairs = PreferenceSet(preferences, references)
        adam = AdamParams(workload.learning_rate, beta1=0.9, beta2=0.999, eps=1e-8, grad_clip_norm=1.0)
        stopwatch = Stopwatch()
        for step in range(len(workload.steps)):
            batch = Batch(pairs, range(step * size, (step + 1) * size))
            output = await backend.forward_backward(batch.datums(loss, None), loss)
            await backend.optim_step(adam)
            stopwatch.step_ended(output.loss)
        stopwatch.report()
        await backend.close()


def rendered(row: int, pair: Pair) -> RenderedPreference:
    def side(completion: list[int]) -> Side:
        tokens = np.array(pair.prompt + completion, np.int32)
        return Side(tokens, (np.arange(tokens.size) >= len(pair.prompt)).astype(np.float32))

    return RenderedPreference(side(pair.chosen), side(pair.rejected), row)


if __name__ == "__main__":
    asyncio.run(main())
