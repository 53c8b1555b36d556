"""What the distillation speed benchmark trains on, and how a side tells what it did. Standard library only."""

import json
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Distillation:
    """Prompts of every step as ids, and how they are answered.

    Attributes:
        student: folder of the student's weights.
        teacher: folder of the teacher's.
        num_threads: of every side.
        steps: the prompts of each step; the first step is a warm-up.
        group_size: answers to each prompt.
        max_tokens: the limit of an answer.
        stop_token_ids: each ends an answer.
        learning_rate: constant.
    """

    student: str
    teacher: str
    num_threads: int
    steps: list[list[list[int]]]
    group_size: int
    max_tokens: int
    stop_token_ids: list[int]
    learning_rate: float

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class Stopwatch:
    """Times the steps after the first."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._num_tokens: list[int] = []
        self._start = self._cpu_start = 0.0

    def step_ended(self, loss: float, num_tokens: int) -> None:
        """Note a step, its loss and how many tokens were sampled in it."""
        self._losses.append(loss)
        self._num_tokens.append(num_tokens)
        if len(self._losses) == 1:
            self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def report(self) -> None:
        """Print the result as a line of JSON."""
        result = {
            "num_steps": len(self._losses) - 1,
            "num_tokens": sum(self._num_tokens[1:]),
            "first_loss": self._losses[0],
            "seconds": round(time.perf_counter() - self._start, 3),
            "cpu_seconds": round(time.process_time() - self._cpu_start, 3),
            "max_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }
        print(json.dumps(result), flush=True)
