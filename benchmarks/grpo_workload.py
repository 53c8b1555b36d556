"""What the GRPO speed benchmark plays: prompts of every step, and the reward. Standard library only.

The reward is the share of even ids in an answer: it costs nothing, and hardly ever gives a whole group the same.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

GROUP_SIZE = 8


@dataclass(frozen=True)
class Workload:
    """Everything a side is told.

    Attributes:
        model: folder of the weights and the tokenizer.
        num_threads: of every side.
        steps: the prompts of each step, as ids; no prompt stands twice.
        group_size: answers to each prompt.
        max_tokens: the limit of an answer.
        learning_rate: of AdamW, constant.
        seed: decides the draws.
    """

    model: str
    num_threads: int
    steps: list[list[list[int]]]
    group_size: int
    max_tokens: int
    learning_rate: float
    seed: int = 0

    @property
    def prompts(self) -> list[list[int]]:
        """Those of all steps, in order."""
        return [prompt for step in self.steps for prompt in step]

    @property
    def groups_a_step(self) -> int:
        """Prompts of a step."""
        return len(self.steps[0])

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def reward(tokens: Sequence[int]) -> float:
    """The share of even ids."""
    return sum(token % 2 == 0 for token in tokens) / max(1, len(tokens))
