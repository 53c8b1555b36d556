"""How well a model predicts held-out text: forward passes only, no gradient.

nll            -sum logp / number of trained tokens              natural logarithm
perplexity     exp(nll)
bits_per_byte  -sum logp / ln 2 / UTF-8 bytes of the trained text    comparable between tokenizers
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from crucible_train import files
from crucible_train.data.examples import Example, datum
from crucible_train.ports import TrainingClient
from crucible_train.types import CrossEntropy

_EXAMPLES_A_PASS = 64


@dataclass(frozen=True, slots=True)
class ExampleNll:
    """What one example contributes: its summed negative log-probability, and over what."""

    row: int
    nll: float
    num_tokens: int
    num_bytes: int


async def measure_nll(client: TrainingClient, examples: Sequence[Example]) -> list[ExampleNll]:
    """The negative log-probability of every example's trained tokens, each counted once whatever its weight."""
    found: list[ExampleNll] = []
    for start in range(0, len(examples), _EXAMPLES_A_PASS):
        batch = [examples[index] for index in range(start, min(start + _EXAMPLES_A_PASS, len(examples)))]
        output = await client.forward([datum(example) for example in batch], CrossEntropy())
        for example, logprobs in zip(batch, output.logprobs_D, strict=True):
            is_trained = example.weights_T[1:] != 0
            total = -float(logprobs[is_trained].sum(dtype="float64"))
            found.append(ExampleNll(example.row, total, int(is_trained.sum()), example.num_bytes))
    return found


def write_measured(path: Path, step: int, found: Sequence[ExampleNll]) -> None:
    """Keep what was measured after ``step`` steps, so that the same weights need not be measured again."""
    files.write_json(path, {"step": step, "examples": [asdict(example) for example in found]})


def read_measured(path: Path, step: int) -> list[ExampleNll] | None:
    """What is kept there, if it was measured after ``step`` steps."""
    kept = files.read_json(path)
    return [ExampleNll(**example) for example in kept["examples"]] if kept and kept["step"] == step else None


def nll_metrics(found: Sequence[ExampleNll]) -> dict[str, float]:
    """The three figures over all examples."""
    total, num_tokens = sum(e.nll for e in found), sum(e.num_tokens for e in found)
    nll = total / num_tokens
    bits_per_byte = total / math.log(2) / max(1, sum(e.num_bytes for e in found))
    return {"eval/nll": nll, "eval/perplexity": math.exp(min(nll, 700.0)), "eval/bits_per_byte": bits_per_byte}
