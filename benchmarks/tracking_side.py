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
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import run_directory
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
    """When each step was logged, by the machine's monotonic clock, and how long the loggers kept it waiting in all."""
    config = SFTConfig.model_validate(workload["config"] | {"report_to": options["report_to"]})
    store = wiring.blob_store(config.cache_dir)
    inputs = {name: open_artifact(store, ref) for name, ref in (await _inputs(config)).items()}
    run_dir, folder = Path(options["run_dir"]), Path(options["run_dir"]).with_suffix(".output")
    run_directory.begin(run_dir, config)
    folder.mkdir()
    loggers: list[_Timed] = []
    make = wiring.metrics_logger

    def make_timed(*args: Any) -> Any:
        loggers.append(_Timed(make(*args)))
        return loggers[-1]

    wiring.metrics_logger = make_timed
    await Train(config, wiring.hardware(config.engine), run_dir).run(inputs, folder)
    (logger,) = loggers
    return {"logged_at": list(logger.logged_at.values()), "logging_s": round(logger.seconds, 4)}


class _Timed:
    """A logger with a clock: what was spent in its calls, and when each step was logged first."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self.seconds = 0.0
        self.logged_at: dict[int, float] = {}

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._logger, name)
        if not callable(call):
            return call

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            if name == "log_metrics":
                self.logged_at.setdefault(args[1], started)
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.monotonic() - started

        return timed


if __name__ == "__main__":
    main()
