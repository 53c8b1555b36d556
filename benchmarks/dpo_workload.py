"""What the DPO speed benchmark trains on: pairs and optimizer steps. Standard library only.

A pair is a prompt and two completions. Lengths are log-normal, each step has the same number of pairs.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BETA = 0.1
PAIRS_A_STEP = 8
PROMPT, COMPLETION = (4.4, 0.5), (4.2, 0.6)  # mean and deviation of the logarithms of lengths
SHORTEST, LONGEST = 8, 512
_FIRST_ORDINARY_ID = 3


@dataclass(frozen=True)
class Pair:
    """Token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Workload:
    """Everything a side is told: the weights to begin with, the pairs of every step, and how to optimise.

    ``adapter`` is a peft folder; None trains all weights.
    """

    model: str
    adapter: str | None
    learning_rate: float
    num_threads: int
    steps: list[list[Pair]]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Workload":
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["steps"] = [[Pair(**one) for one in step] for step in found["steps"]]
        return cls(**found)

    def num_tokens(self, first_step: int = 0) -> int:
        """Tokens of both sequences of every pair, prompts counted twice: what a loop without padding computes."""
        return sum(
            2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
            for step in self.steps[first_step:]
            for pair in step
        )


def draw_steps(num_steps: int, vocab_size: int, seed: int) -> list[list[Pair]]:
    draw = random.Random(seed)

    def tokens(mean: float, deviation: float) -> list[int]:
        length = max(SHORTEST, min(LONGEST, int(draw.lognormvariate(mean, deviation))))
        span = vocab_size - _FIRST_ORDINARY_ID
        return [_FIRST_ORDINARY_ID + int(span * draw.random() ** 3) for _ in range(length)]

    def pair() -> Pair:
        return Pair(tokens(*PROMPT), tokens(*COMPLETION), tokens(*COMPLETION))

    return [[pair() for _ in range(PAIRS_A_STEP)] for _ in range(num_steps)]
