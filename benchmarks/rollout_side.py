"""One side of the rollout speed benchmark, in a process of its own.

    python -m benchmarks.rollout_side WORKLOAD OPTIONS

OPTIONS is JSON: ``kind`` (ours, generate, continuous) and what that kind takes. The last line is the result, as JSON:
tokens written, seconds by the clock and by the processor, highest memory, and the greedy answers.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.rollout_workload import Rollouts
from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.types import Hardware, ModelInput, SamplingParams

_WARM_UP_TOKENS = 4
_AT_END: list[Callable[[], None]] = []
# Writes answers to prompts: (prompts, samples of each, limit, whether greedily) to the tokens of each.
Write = Callable[[list[list[int]], int, int, bool], list[list[int]]]


def main() -> None:
    workload, options = Rollouts.read(Path(sys.argv[1])), json.loads(sys.argv[2])
    torch.set_num_threads(workload.num_threads)
    write = _KINDS[options.pop("kind")](workload, **options)
    write(workload.prompts[:1], 2, _WARM_UP_TOKENS, False)
    start, cpu_start = time.perf_counter(), time.process_time()
    written = write(workload.prompts, workload.group_size, workload.max_tokens, False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    greedy = write(workload.prompts[: workload.num_greedy], 1, workload.greedy_tokens, True)
    result = {
        "num_tokens": sum(map(len, written)),
        "num_answers": len(written),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "max_rss_mib": round(max_rss / 1024, 1),
        "greedy": greedy,
    }
    print(json.dumps(result), flush=True)
    for close in _AT_END:
        close()


def _ours(workload: Rollouts, precision: str = "float32") -> Write:
    settings = EngineSettings(Hardware("cpu", precision, workload.num_threads), Path())  # type: ignore[arg-type]
    backend = LocalBackend(Path(workload.model), None, settings, None)  # type: ignore[arg-type]
    _AT_END.append(lambda: asyncio.run(backend.close()))

    def write(prompts: list[list[int]], num: int, limit: int, greedy: bool) -> list[list[int]]:
        params = SamplingParams(
            limit, temperature=0.0 if greedy else 1.0, stop_token_ids=tuple(workload.stop_token_ids)
        )

        async def ask() -> Any:
            return await asyncio.gather(*(backend.sample(ModelInput.from_ints(p), num, params) for p in prompts))

        return [list(answer.tokens) for answers in asyncio.run(ask()) for answer in answers]

    return write


def _model(workload: Rollouts, attention: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        workload.model, dtype=torch.float32, attn_implementation=attention, local_files_only=True
    )
    return model.eval()


def _config(workload: Rollouts, num: int, limit: int, greedy: bool, **more: Any) -> GenerationConfig:
    sampling = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        do_sample=not greedy,
        num_return_sequences=num,
        max_new_tokens=limit,
        eos_token_id=workload.stop_token_ids,
        pad_token_id=0,
        **sampling,
        **more,
    )


def _generate(workload: Rollouts, attention: str = "sdpa", batch_size: int = 0, cache: str = "dynamic") -> Write:
    """Left-padded batches of ``batch_size`` prompts, 0 for all at once."""
    model = _model(workload, attention)
    stops = set(workload.stop_token_ids)

    @torch.no_grad()
    def write(prompts: list[list[int]], num: int, limit: int, greedy: bool) -> list[list[int]]:
        config = _config(workload, num, limit, greedy, cache_implementation=cache, disable_compile=True)
        found = []
        size = batch_size or len(prompts)
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
            out = model.generate(ids, attention_mask=mask, generation_config=config)
            found += [_cut(row[longest:].tolist(), stops) for row in out]
        return found

    return write


def _cut(tokens: list[int], stops: set[int]) -> list[int]:
    end = next((place + 1 for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


def _continuous(workload: Rollouts, attention: str = "sdpa", **settings: Any) -> Write:
    """transformers' continuous batching."""
    model = _model(workload, attention)

    def write(prompts: list[list[int]], num: int, limit: int, greedy: bool) -> list[list[int]]:
        config = _config(workload, num, limit, greedy)
        out = model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=ContinuousBatchingConfig(**settings)
        )
        if len(out) != len(prompts) * num:
            raise RuntimeError(f"{len(out)} answers of {len(prompts) * num}")
        return [list(answer.generated_tokens) for answer in out.values()]

    return write


_KINDS: dict[str, Callable[..., Write]] = {"ours": _ours, "generate": _generate, "continuous": _continuous}


if __name__ == "__main__":
    main()
