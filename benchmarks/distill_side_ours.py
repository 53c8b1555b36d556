"""Our side of the distillation speed benchmark: ``python -m benchmarks.distill_side_ours WORKLOAD OPTIONS``.

The student answers, the teacher's whole distributions at the answers' tokens are compared with the student's, and an
AdamW step follows: exact reverse KL over the whole vocabulary, all weights trained. Option: ``precision``.
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.distill_workload import Distillation, Stopwatch
from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.types import AdamParams, Datum, Divergence, Hardware, ModelInput, SamplingParams, TensorData


def main() -> None:
    workload, options = Distillation.read(Path(sys.argv[1])), json.loads(sys.argv[2])
    torch.set_num_threads(workload.num_threads)
    asyncio.run(_train(workload, **options))


async def _train(workload: Distillation, precision: str = "float32") -> None:
    settings = EngineSettings(Hardware("cpu", precision, workload.num_threads), Path())  # type: ignore[arg-type]
    student = LocalBackend(Path(workload.student), None, settings, None)  # type: ignore[arg-type]
    frozen = LocalBackend(Path(workload.teacher), None, settings, Lora(1, 1.0, 0.0, "all-linear"))  # type: ignore[arg-type]
    loss = Divergence(teacher=frozen.sampling_client(with_adapter=False))
    stopwatch = Stopwatch()
    for step, prompts in enumerate(workload.steps):
        params = SamplingParams(workload.max_tokens, seed=step, stop_token_ids=tuple(workload.stop_token_ids))
        asked = [student.sample(ModelInput.from_ints(prompt), workload.group_size, params) for prompt in prompts]
        answers = await asyncio.gather(*asked)
        pairs = [(prompt, one.tokens) for prompt, group in zip(prompts, answers, strict=True) for one in group]
        num_tokens = sum(len(tokens) for _, tokens in pairs)
        found = await student.forward_backward([_datum(*pair, 1 / num_tokens) for pair in pairs], loss)
        await student.optim_step(AdamParams(learning_rate=workload.learning_rate, beta2=0.999, grad_clip_norm=1.0))
        stopwatch.step_ended(found.loss, num_tokens)
    stopwatch.report()


def _datum(prompt: list[int], answer: tuple[int, ...], weight: float) -> Datum:
    tokens = np.array([*prompt, *answer])
    weights = (np.arange(1, tokens.size) >= len(prompt)) * np.float32(weight)
    inputs = {
        "target_tokens": TensorData(tokens[1:], "int64"),
        "weights": TensorData(weights, "float32"),
    }
    return Datum(ModelInput.from_ints(tokens[:-1]), inputs)


if __name__ == "__main__":
    main()
