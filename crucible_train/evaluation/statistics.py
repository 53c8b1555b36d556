"""Intervals. Everything is a function of its arguments; draws come from a seed.

Axes: E examples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from crucible_train.seeds import generator

_NUM_RESAMPLES = 4000
_DRAWS_AT_ONCE = 1 << 22

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside."""
        return not self.low <= value <= self.high


def ratio_interval(totals_E: Floats, counts_E: Floats, seed: int, confidence: float = 0.95) -> Interval:
    """``sum(totals) / sum(counts)``, such as a mean over tokens, with examples resampled (percentile bootstrap)."""
    sums = _resampled(np.stack([totals_E, counts_E]), seed)
    return _percentiles(float(totals_E.sum() / counts_E.sum()), sums[0] / sums[1], confidence)


def paired_ratio_interval(
    before_E: Floats, after_E: Floats, counts_E: Floats, seed: int, confidence: float = 0.95
) -> Interval:
    """The difference after - before of two such ratios over the same examples, resampled in pairs."""
    return ratio_interval(after_E - before_E, counts_E, seed, confidence)


def rate_interval(num_hits: float, num_trials: int, confidence: float = 0.95) -> Interval:
    """A share of successes with Wilson's score interval (1927), which stays in [0, 1] and works for small numbers.

    Hits may be counted in part: values between 0 and 1 vary less than hits of the same mean, so the interval is a
    little wide for them.
    """
    if num_trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = _z(confidence)
    share = num_hits / num_trials
    centre = (share + z * z / (2 * num_trials)) / (1 + z * z / num_trials)
    half = z / (1 + z * z / num_trials) * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    low = max(0.0, centre - half) if num_hits > 0 else 0.0  # exactly: rounding would leave a little more
    high = min(1.0, centre + half) if num_hits < num_trials else 1.0
    return Interval(share, low, high)


def paired_rate_interval(before_E: Sequence[bool], after_E: Sequence[bool], confidence: float = 0.95) -> Interval:
    """The difference after - before of two shares over the same examples.

    The interval of Agresti and Min (Statistics in Medicine 24, 2005): half an observation is added to each of the four
    cells, which keeps it honest for small numbers.
    """
    num = len(before_E)
    gained = sum(a and not b for b, a in zip(before_E, after_E, strict=True))
    lost = sum(b and not a for b, a in zip(before_E, after_E, strict=True))
    if num == 0:
        return Interval(math.nan, -1.0, 1.0)
    total, up, down = num + 2, gained + 0.5, lost + 0.5
    centre = (up - down) / total
    half = _z(confidence) * math.sqrt((up + down) - (up - down) ** 2 / total) / total
    return Interval((gained - lost) / num, max(-1.0, centre - half), min(1.0, centre + half))


def _resampled(values_KE: Floats, seed: int) -> Floats:
    """Sums of each row of values over resampled examples, shape (K, resamples)."""
    num = values_KE.shape[1]
    random, shares = generator(seed, "bootstrap"), np.full(num, 1 / num)
    at_once = max(1, _DRAWS_AT_ONCE // num)
    sizes = [min(at_once, _NUM_RESAMPLES - start) for start in range(0, _NUM_RESAMPLES, at_once)]
    return np.concatenate([values_KE @ random.multinomial(num, shares, size=size).T for size in sizes], axis=1)


def _percentiles(value: float, resampled: Floats, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
