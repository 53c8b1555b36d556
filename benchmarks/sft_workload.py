"""What the SFT speed benchmark trains on: shapes, examples and optimizer steps. Standard library only.

Examples have log-normal lengths, and a prompt part without weight. Best-fit decreasing, as TRL does it (``bfd``), puts
them into packs; a step is a fixed number of whole packs, so that every side trains the same examples in every step.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "architecture": "Qwen3",
        "vocab_size": 32768,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "small": {
        "architecture": "Qwen3",
        "vocab_size": 32768,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "smollm2": {
        "architecture": "Llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rope_theta": 100000.0,
    },
}
MIN_LENGTH, MAX_LENGTH, LOG_MEAN, LOG_SIGMA = 24, 1024, 5.1, 0.75
PACK_LENGTH = 1024
PACKS_A_STEP = 2
_FIRST_ORDINARY_ID = 3


@dataclass(frozen=True)
class Example:
    """Token ids, of which the first ``num_prompt`` carry no weight."""

    tokens: list[int]
    num_prompt: int

    @property
    def labels(self) -> list[int]:
        """The ids to predict; -100 where none is."""
        return [-100] * self.num_prompt + self.tokens[self.num_prompt :]


@dataclass(frozen=True)
class Workload:
    """Everything a side is told: the weights to begin with, the examples of every step, and how to optimise.

    ``steps`` holds packs of examples. ``adapter`` is a peft folder; None trains all weights.
    """

    model: str
    adapter: str | None
    vocab_size: int
    learning_rate: float
    num_threads: int
    steps: list[list[list[Example]]]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Workload":
        found = json.loads(path.read_text(encoding="utf-8"))
        found["steps"] = [[[Example(**one) for one in pack] for pack in step] for step in found["steps"]]
        return cls(**found)

    def examples(self, step: int) -> list[Example]:
        """The examples of a step, in the order of its packs."""
        return [example for pack in self.steps[step] for example in pack]

    def num_tokens(self, first_step: int = 0) -> int:
        """Real tokens of the steps from ``first_step`` on: there is no padding to count."""
        return sum(len(e.tokens) for step in range(first_step, len(self.steps)) for e in self.examples(step))

    def padding_ratio(self, batch_size: int, first_step: int = 0) -> float:
        """How many times the real tokens a loop computes that pads batches to their longest example; 0: whole steps."""
        padded = 0
        for step in range(first_step, len(self.steps)):
            lengths = [len(example.tokens) for example in self.examples(step)]
            size = batch_size or len(lengths)
            batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
            padded += sum(len(batch) * max(batch) for batch in batches)
        return padded / self.num_tokens(first_step)


def draw_steps(num_steps: int, vocab_size: int, seed: int) -> list[list[list[Example]]]:
    """As many examples as fill the packs of ``num_steps`` steps, the packs in random order."""
    draw = random.Random(seed)
    examples: list[Example] = []
    packs: list[list[Example]] = []
    while True:
        examples.append(_example(draw, vocab_size))
        more = best_fit_decreasing(examples, PACK_LENGTH)
        if len(more) > num_steps * PACKS_A_STEP:
            break
        packs = more
    draw.shuffle(packs)
    for pack in packs:
        draw.shuffle(pack)
    return [packs[start : start + PACKS_A_STEP] for start in range(0, len(packs), PACKS_A_STEP)]


def best_fit_decreasing(examples: list[Example], pack_length: int) -> list[list[Example]]:
    """Longest first, each into the pack that it leaves the least room in."""
    packs: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda example: -len(example.tokens)):
        length = len(example.tokens)
        fitting = [place for place, left in enumerate(room) if left >= length]
        if fitting:
            best = min(fitting, key=lambda place: room[place])
            packs[best].append(example)
            room[best] -= length
        else:
            packs.append([example])
            room.append(pack_length - length)
    return packs


def _example(draw: random.Random, vocab_size: int) -> Example:
    length = max(MIN_LENGTH, min(MAX_LENGTH, int(draw.lognormvariate(LOG_MEAN, LOG_SIGMA))))
    span = vocab_size - _FIRST_ORDINARY_ID
    tokens = [_FIRST_ORDINARY_ID + int(span * draw.random() ** 3) for _ in range(length)]
    return Example(tokens, max(4, int(length * draw.uniform(0.2, 0.5))))
