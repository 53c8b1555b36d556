"""One side of a comparison, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import record


def run(
    python: Path | str, module: str, workload: Path, options: Mapping[str, Any], num_threads: int
) -> dict[str, Any]:
    """What ``python -m module`` measured: the last line it printed, as JSON. Where it fails, so does the benchmark."""
    done = subprocess.run(
        [python, "-m", module, workload, json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
        cwd=record.ROOT,
        env=environment(num_threads),
    )
    if done.returncode != 0:
        sys.exit(f"{module} {dict(options)} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def environment(num_threads: int | None) -> dict[str, str]:
    """The environment of every side: no hub, no telemetry, the threads it may use."""
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
    if num_threads is not None:
        own |= {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
    return {**os.environ, **own}
