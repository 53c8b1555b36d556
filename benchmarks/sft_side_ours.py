"""Our side of the SFT speed benchmark: the local engine through its port. Options: ``precision``."""

import asyncio
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.sft_side import Stopwatch, arguments
from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.data.examples import Example, normalised
from crucible_train.types import AdamParams, CrossEntropy, Hardware


async def main() -> None:
    workload, options = arguments()
    lora = Lora(16, 32.0, 0.0, "all-linear") if workload.adapter else None
    with tempfile.TemporaryDirectory() as states:
        backend = LocalBackend(
            Path(workload.model),
            None,  # nothing is rendered
            EngineSettings(Hardware("cpu", options["precision"], workload.num_threads), Path(states)),
            lora,
            adapter=Path(workload.adapter) if workload.adapter else None,
        )
        adam = AdamParams(workload.learning_rate, beta1=0.9, beta2=0.999, eps=1e-8, grad_clip_norm=1.0)
        stopwatch = Stopwatch()
        for step in range(len(workload.steps)):
            examples = [
                Example(
                    np.array(example.tokens, np.int32),
                    (np.arange(len(example.tokens)) >= example.num_prompt).astype(np.float32),
                    row=0,
                    num_bytes=0,
                )
                for example in workload.examples(step)
            ]
            output = await backend.forward_backward(normalised(examples, "token"), CrossEntropy())
            await backend.optim_step(adam)
            stopwatch.step_ended(output.loss)
        stopwatch.report()
        await backend.close()


if __name__ == "__main__":
    asyncio.run(main())
