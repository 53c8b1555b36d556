"""One training of ``tracking_overhead``, in a process of its own; or, with ``prepare``, what all of them read.

    python -m benchmarks.tracking_side WORKLOAD OPTIONS

WORKLOAD is a file with the folder and the configuration as JSON; OPTIONS are JSON: ``report_to``, and ``prepare``.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import record
from crucible_train import wiring
from crucible_train.metrics_file import read_metrics
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import run_directory, tracked
from crucible_train.stages.base import open_artifact, resolve
from crucible_train.stages.prepare_data import PrepareData
from crucible_train.stages.prepare_model import external
from crucible_train.stages.render import Render
from crucible_train.stages.train import Train
from crucible_train.types import ArtifactRef


def main() -> None:
    workload = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    options = json.loads(sys.argv[2])
    found = _prepare(workload) if options.get("prepare") else asyncio.run(_train(workload, options))
    print(json.dumps(found))


def _prepare(workload: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from crucible_train.renderers import FastTokenizer

    config = SFTConfig.model_validate(workload["config"])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**workload["model"])).save_pretrained(config.model)
    FastTokenizer.from_folder(record.ROOT / "crucible_train" / "assets" / "smollm2").to_folder(Path(config.model))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} plus {i + 1}?"},
                {"role": "assistant", "content": f"{i} + {i + 1} = {2 * i + 1}, and that is odd. #### {2 * i + 1}"},
            ]
        }
        for i in range(workload["num_rows"])
    ]
    Path(config.dataset).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asyncio.run(_inputs(config))
    return {}


async def _inputs(config: SFTConfig) -> dict[str, ArtifactRef]:
    refs = {"model": external(Path(config.model))}
    refs["conversations"] = (await resolve(PrepareData(config), {}, config.cache_dir)).ref
    refs["rendered"] = (await resolve(Render(config), refs, config.cache_dir)).ref
    return refs


async def _train(workload: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The clock where the loggers are told of the run, and at the end of the stage."""
    config = SFTConfig.model_validate(workload["config"] | {"report_to": options["report_to"]})
    store = wiring.blob_store(config.cache_dir)
    inputs = {name: open_artifact(store, ref) for name, ref in (await _inputs(config)).items()}
    run_dir, folder = Path(options["run_dir"]), Path(options["run_dir"]).with_suffix(".output")
    run_directory.begin(run_dir, config)
    folder.mkdir()
    began: list[float] = []
    start = tracked.start

    def timed_start(*args: Any) -> None:
        began.append(time.monotonic())
        start(*args)

    tracked.start = timed_start
    cpu_began = time.process_time()
    await Train(config, wiring.hardware(config.engine), run_dir).run(inputs, folder)
    ended = time.monotonic()
    return {
        "began": began[0],
        "ended": ended,
        "cpu_seconds": round(time.process_time() - cpu_began, 3),
        "num_steps": len(read_metrics(run_dir)) - 1,
    }


if __name__ == "__main__":
    main()
