"""What the rollout speed benchmark writes: groups of samples to prompts, with answers of varying length.

A model of random weights is nearly uniform over its vocabulary, so that a random set of stop tokens of a given share of
it ends an answer with that probability at each token. The real model ends one with a full stop.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

GROUP_SIZE = 8
_FIRST_ORDINARY_ID = 3


@dataclass(frozen=True)
class Rollouts:
    """Prompts as ids, and how to sample from each of them.

    Attributes:
        model: folder of the weights.
        num_threads: of every side.
        prompts: ids of each.
        group_size: samples of each.
        max_tokens: the limit of an answer.
        stop_token_ids: each ends an answer.
        greedy_tokens: how many tokens every side writes greedily to the first prompts, to be compared.
        num_greedy: to how many prompts.
    """

    model: str
    num_threads: int
    prompts: list[list[int]]
    group_size: int
    max_tokens: int
    stop_token_ids: list[int]
    greedy_tokens: int
    num_greedy: int

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def draw_prompts(num: int, mean_length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts of 0.4 to 1.6 times the mean length; frequent ids are more frequent than rare ones."""
    draw = random.Random(seed)
    span = vocab_size - _FIRST_ORDINARY_ID
    return [
        [_FIRST_ORDINARY_ID + int(span * draw.random() ** 3) for _ in range(int(mean_length * draw.uniform(0.4, 1.6)))]
        for _ in range(num)
    ]


def draw_stops(share: float, vocab_size: int, seed: int) -> list[int]:
    """This share of the vocabulary."""
    draw = random.Random(seed + 1)
    return sorted(draw.sample(range(_FIRST_ORDINARY_ID, vocab_size), int(share * vocab_size)))
