"""What the sides of the GRPO speed benchmark share: each runs in a process of its own, with a stopwatch over its steps.

    python -m benchmarks.grpo_side_<name> WORKLOAD OPTIONS

OPTIONS is JSON. The last line a side prints is its result, as JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.grpo_workload import Workload


def arguments() -> tuple[Workload, dict[str, Any]]:
    """The workload and the options of this side."""
    return Workload.read(Path(sys.argv[1])), json.loads(sys.argv[2])


class Stopwatch:
    """Notes what each step took, how much of it was sampling, and its numbers."""

    def __init__(self) -> None:
        """Start."""
        self._began = _now()
        self._sampling = (0.0, 0.0)
        self._steps: list[dict[str, float]] = []

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """What happens in this context is sampling."""
        start = _now()
        yield
        wall, cpu = _since(start)
        self._sampling = (self._sampling[0] + wall, self._sampling[1] + cpu)

    def step_ended(self, **numbers: float) -> None:
        """One more step is done: ``loss``, ``grad_norm`` and ``num_tokens`` sampled."""
        wall, cpu = _since(self._began)
        times = {"s": wall, "cpu_s": cpu, "sampling_s": self._sampling[0], "sampling_cpu_s": self._sampling[1]}
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self._steps.append({name: round(value, 4) for name, value in times.items()} | numbers | {"max_rss_mib": memory})
        self._began, self._sampling = _now(), (0.0, 0.0)

    def report(self, **more: Any) -> None:
        """Print the result: all steps, the highest memory until the last of them ended, and what else there is."""
        found = {"steps": self._steps, "max_rss_mib": round(self._steps[-1].pop("max_rss_mib"), 1), **more}
        for step in self._steps[:-1]:
            del step["max_rss_mib"]
        print(json.dumps(found), flush=True)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = _now()
    return wall - start[0], cpu - start[1]
