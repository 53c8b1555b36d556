"""Random draws: a pure function of the seed and the purpose, in every process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from crucible_train.seeds import fold, generator

ROOT = Path(__file__).parents[1]


def test_a_folded_seed_is_the_first_63_bits_of_the_digest_of_its_parts():
    digest = hashlib.sha256(b"7\x1fstr:order\x1fint:3").hexdigest()
    assert fold(7, "order", 3) == int(digest[:16], 16) // 2


def test_another_process_draws_the_same_whatever_its_hash_seed():
    program = (
        "from crucible_train.seeds import generator; print(generator(7, 'order', 3).integers(0, 2**40, 4).tolist())"
    )
    expected = str(generator(7, "order", 3).integers(0, 2**40, 4).tolist())
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_seeds_purposes_steps_and_their_kinds_all_lead_elsewhere():
    purposes = [("order", step) for step in range(50)] + [("order",), ("split",), ("order", "0"), ("order", 0, 0), ()]
    seeds = [fold(seed, *purpose) for seed in range(5) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_drawing_for_one_purpose_does_not_move_another():
    expected = generator(0, "b").random(3)
    generator(0, "a").random(1000)
    np.testing.assert_array_equal(generator(0, "b").random(3), expected)
