"""Our losses over preferences beside those that TRL's DPOTrainer computes from the same log-probabilities.

It needs a Python with TRL (``benchmarks/README.md`` says how to make it), found in ``.venv-peers`` or named by
CRUCIBLE_PEERS_PYTHON; without one this test is skipped.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_train.data.preference_tables import RenderedPreference, Side
from crucible_train.losses.by_preference import losses_by_preference
from crucible_train.preference.config import PreferenceConfig
from crucible_train.preference.measuring import Batch, PreferenceSet
from crucible_train.preference.reference import ReferenceLogprobs

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("CRUCIBLE_PEERS_PYTHON", ROOT / ".venv-peers" / "bin" / "python"))
pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="TRL is not installed")
CASES: list[dict[str, Any]] = [
    {"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.0},
    {"loss_type": "sigmoid", "beta": 0.7, "label_smoothing": 0.0},
    {"loss_type": "ipo", "beta": 0.2, "label_smoothing": 0.0},
]


def test_losses_are_trls_to_a_millionth() -> None:
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 40, (24, 2))

    def sides() -> list[list[list[float]]]:
        return [[(-draw.gamma(1.0, 1.5, size)).astype(np.float32).tolist() for size in pair] for pair in sizes]

    task = {"logps": sides(), "reference": sides(), "cases": CASES}
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("trl_side.py")],
        input=json.dumps(task),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])

    def side(size: int) -> Side:
        return Side(np.arange(size + 1, dtype=np.int32), (np.arange(size + 1) > 0).astype(np.float32))

    preferences = [RenderedPreference(side(a), side(b), row) for row, (a, b) in enumerate(sizes)]
    arrays = [[np.array(one, np.float32) for one in pair] for pair in task["reference"]]
    pairs = PreferenceSet(preferences, [ReferenceLogprobs(chosen, rejected, None) for chosen, rejected in arrays])
    logprobs = [np.array(one, np.float32) for pair in task["logps"] for one in pair]
    for case, expected in zip(CASES, theirs, strict=True):
        loss = PreferenceConfig(**case).loss()
        datums = Batch(pairs, range(len(pairs))).datums(loss, None)
        assert losses_by_preference(loss, datums, logprobs).mean() == pytest.approx(expected, rel=1e-6)
