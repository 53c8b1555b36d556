"""Randomness: a pure function of the run's seed and of what it is drawn for. There is no global generator.

What is drawn for step 7 does not depend on what was drawn before it, so a resumed run draws what an undisturbed one
does.
"""

import hashlib

import numpy as np


def fold(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as ``fold(seed, "order", epoch)``."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose (Philox, Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=fold(seed, *purpose)))
