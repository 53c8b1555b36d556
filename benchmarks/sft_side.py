"""What the sides of the SFT speed benchmark share: each runs in a process of its own, with a stopwatch over its steps.

    python -m benchmarks.sft_side_<name> WORKLOAD OPTIONS

OPTIONS is JSON. The last line a side prints is its result, as JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.sft_workload import Workload


def arguments() -> tuple[Workload, dict[str, Any]]:
    """The workload and the options of this side."""
    return Workload.read(Path(sys.argv[1])), json.loads(sys.argv[2])


class Stopwatch:
    """Notes when each optimizer step ended, and its loss."""

    def __init__(self) -> None:
        """Start."""
        self._times = [_now()]
        self._losses: list[float] = []

    def step_ended(self, loss: float) -> None:
        """One more step is done."""
        self._times.append(_now())
        self._losses.append(loss)

    def report(self) -> None:
        """Print the result: seconds of each step by the clock and by the processor, losses, and the highest memory."""
        pairs = list(zip(self._times, self._times[1:], strict=False))
        result = {
            "step_s": [round(end[0] - start[0], 4) for start, end in pairs],
            "step_cpu_s": [round(end[1] - start[1], 4) for start, end in pairs],
            "losses": self._losses,
            "max_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }
        print(json.dumps(result), flush=True)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
