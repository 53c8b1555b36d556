"""Our losses over preferences beside those that TRL's trainers compute from the same log-probabilities.

It needs a Python with TRL (``benchmarks/README.md`` says how to make it), found in ``.venv-peers`` or named by
CRUCIBLE_PEERS_PYTHON; without one this test is skipped. ORPO is compared pair by pair: TRL's likelihood of the chosen
completions is a mean over the tokens of a batch, prompts included, ours a mean over pairs of the completions' means.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crucible_train.data.preference_tables import RenderedPreference, Side
from crucible_train.losses.by_preference import losses_by_preference
from crucible_train.preference.config import PreferenceConfig
from crucible_train.preference.datums import mismatched
from crucible_train.preference.measuring import Batch, PreferenceSet
from crucible_train.preference.reference import ReferenceLogprobs
from crucible_train.types import Datum

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("CRUCIBLE_PEERS_PYTHON", ROOT / ".venv-peers" / "bin" / "python"))
pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="TRL is not installed")
PAIRED: list[dict[str, Any]] = [
    {"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.0},
    {"loss_type": "sigmoid", "beta": 0.7, "label_smoothing": 0.0},
    {"loss_type": "ipo", "beta": 0.2, "label_smoothing": 0.0},
    {"loss_type": "orpo", "beta": 0.1},
    {"loss_type": "orpo", "beta": 0.6},
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
    {"loss_type": "simpo", "beta": 0.5, "simpo_gamma": 0.3},
]
UNPAIRED: list[dict[str, Any]] = [
    {"loss_type": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    {"loss_type": "kto", "beta": 0.05, "desirable_weight": 1.3, "undesirable_weight": 0.6},
]
Floats = np.ndarray


def drawn(draw: np.random.Generator, sizes: Sequence[int], scale: float = 1.5) -> list[Floats]:
    return [(-draw.gamma(1.0, scale, size)).astype(np.float32) for size in sizes]


def as_pairs(arrays: Sequence[Floats]) -> list[list[list[float]]]:
    return [[arrays[i].tolist(), arrays[i + 1].tolist()] for i in range(0, len(arrays), 2)]


def theirs(task: dict[str, Any]) -> list[float]:
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("trl_side.py")],
        input=json.dumps(task),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def side(size: int, row: int) -> Side:
    """A completion of ``size`` tokens after a prompt of one, which is the row's own."""
    tokens_T = np.arange(size + 1, dtype=np.int32)
    tokens_T[0] = row
    return Side(tokens_T, (np.arange(size + 1) > 0).astype(np.float32))


def test_losses_of_pairs_are_trls_to_a_millionth() -> None:
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 40, (24, 2))
    logprobs, reference = drawn(draw, sizes.ravel()), drawn(draw, sizes.ravel())
    expected = theirs({"logps": as_pairs(logprobs), "reference": as_pairs(reference), "cases": PAIRED})
    preferences = [RenderedPreference(side(a, row), side(b, row), row) for row, (a, b) in enumerate(sizes)]
    kept = [ReferenceLogprobs(*reference[i : i + 2], None) for i in range(0, len(reference), 2)]
    pairs = PreferenceSet(preferences, kept)
    for case, wanted in zip(PAIRED, expected, strict=True):
        loss = PreferenceConfig(**case).loss()
        datums = Batch(pairs, range(len(pairs))).datums(loss, None)
        assert losses_by_preference(loss, datums, logprobs).mean() == pytest.approx(wanted, rel=1e-6), case


@pytest.mark.parametrize("has_moved", [True, False])
def test_losses_of_completions_alone_are_trls_to_a_millionth(has_moved: bool) -> None:
    """KTO, with its reference point: above 0 where mismatched completions have become likelier, else 0."""
    draw = np.random.default_rng(1)
    sizes = draw.integers(1, 40, (24, 2))
    logprobs, reference = drawn(draw, sizes.ravel()), drawn(draw, sizes.ravel())
    preferences = [
        RenderedPreference(None, side(b, row), row) if row % 2 else RenderedPreference(side(a, row), None, row)
        for row, (a, b) in enumerate(sizes)
    ]
    lengths = [int((mismatched(preferences, row).weights_T != 0).sum()) for row in range(len(preferences))]
    of_others = drawn(draw, lengths, 1.0 if has_moved else 2.0)
    reference_of_others = drawn(draw, lengths, 1.5)
    task = {
        "logps": as_pairs(logprobs),
        "reference": as_pairs(reference),
        "mismatched": [one.tolist() for one in of_others],
        "mismatched_reference": [one.tolist() for one in reference_of_others],
        "cases": UNPAIRED,
    }
    kept = [
        ReferenceLogprobs(*((None, reference[2 * row + 1]) if row % 2 else (reference[2 * row], None)), one)
        for row, one in enumerate(reference_of_others)
    ]
    batch = Batch(PreferenceSet(preferences, kept), range(len(preferences)))
    own = [logprobs[2 * row + row % 2] for row in range(len(preferences))]
    for case, wanted in zip(UNPAIRED, theirs(task), strict=True):
        loss = PreferenceConfig(**case).loss()
        point = asyncio.run(batch.reference_point(Client(of_others), loss))  # type: ignore[arg-type]
        assert point is not None
        assert (point > 0) is has_moved
        datums = batch.datums(loss, point)
        assert losses_by_preference(loss, datums, own).mean() == pytest.approx(wanted, rel=1e-6), case


class Client:
    """Gives mismatched completions the log-probabilities that are known of them."""

    def __init__(self, known: Sequence[Floats]) -> None:
        self.known = known

    async def forward(self, datums: Sequence[Datum], _loss: Any) -> SimpleNamespace:
        assert len(datums) == len(self.known)
        return SimpleNamespace(logprobs_D=self.known)
