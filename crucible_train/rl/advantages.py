"""From the rewards of a group to how much better than expected each sample was.

    group_mean         r_i - mean(r)                       Shao et al., arXiv 2402.03300, without the division
    group_normalised   (r_i - mean(r)) / (std(r) + 1e-4)   GRPO as published; std with Bessel's correction
    rloo               r_i - mean of the other samples     Ahmadian et al., arXiv 2402.14740
    batch_mean         r_i - mean over all groups at hand  REINFORCE with a baseline (Williams, 1992)

Axes: P problems, G samples of a problem.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Estimator = Literal["group_mean", "group_normalised", "rloo", "batch_mean"]
_EPSILON = 1e-4


def group_mean(rewards_G: Floats) -> Floats:
    """``r_i - mean(r)``."""
    return rewards_G - float(rewards_G.mean())


def group_normalised(rewards_G: Floats) -> Floats:
    """``(r_i - mean(r)) / (std(r) + 1e-4)``; 0 for a group of one."""
    centred_G = group_mean(rewards_G)
    return centred_G / (rewards_G.std(ddof=1) + _EPSILON) if rewards_G.size > 1 else centred_G


def rloo(rewards_G: Floats) -> Floats:
    """``r_i - mean of the others``, which is ``G / (G - 1)`` times that from the mean of all; 0 for a group of one."""
    return group_mean(rewards_G) * (rewards_G.size / max(1, rewards_G.size - 1))


_WITHIN_GROUP: Mapping[str, Callable[[Floats], Floats]] = {
    "group_mean": group_mean,
    "group_normalised": group_normalised,
    "rloo": rloo,
}


def advantages(rewards_P_G: Sequence[Sequence[float]], estimator: Estimator) -> list[Floats]:
    """The advantages of each group's samples, one array a group.

    Rewards that are equal give exactly 0: rounding in a mean must not look like a difference.
    """
    groups = [np.asarray(rewards_G, np.float64) for rewards_G in rewards_P_G]
    if estimator == "batch_mean":
        everything = np.concatenate(groups) if groups else np.zeros(0)
        baseline = everything.mean() if everything.size and not is_constant(everything) else None
        return [np.zeros_like(group) if baseline is None else group - baseline for group in groups]
    return [np.zeros_like(group) if is_constant(group) else _WITHIN_GROUP[estimator](group) for group in groups]


def is_constant(rewards_G: Sequence[float] | Floats) -> bool:
    """Whether all samples of a group were rewarded alike, so that they teach nothing."""
    return len(set(np.asarray(rewards_G).tolist())) <= 1


def overlong_penalty(num_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """What an answer's length costs (DAPO, arXiv 2503.14476, equation 13).

    0 up to ``max_tokens - buffer_tokens``, from there falling in a straight line to -1 at ``max_tokens``.
    """
    beyond = num_tokens - (max_tokens - buffer_tokens)
    return -min(1.0, max(0.0, beyond / buffer_tokens)) if buffer_tokens > 0 else 0.0
