"""What the losses over pairs share: sums over the two sides of each pair, and a pair's loss shared out.

Axes: S scored positions, P pairs, 2 sides (rejected, chosen).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crucible_train.losses.base import REFERENCE, Inputs

PAIR = "pair"
SIDE = "side"
PAIR_INPUTS = ("weights", PAIR, SIDE)
REFERENCE_POINT = "reference_point"


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which scored position belongs to which side of which pair.

    Attributes:
        place_S: twice the pair's place, and 1 more in a chosen completion.
        counts_P2: positions of each side.
    """

    place_S: Tensor
    counts_P2: Tensor

    @classmethod
    def of(cls, inputs: Inputs) -> "Pairs":
        """Read ``pair`` and ``side``.

        Raises:
            ValueError: a pair lacks a side.
        """
        numbers, pair_S = torch.unique(inputs[PAIR], return_inverse=True)
        place_S = 2 * pair_S + (inputs[SIDE] > 0)
        counts_P2 = torch.bincount(place_S, minlength=2 * len(numbers)).view(-1, 2)
        lacking = (counts_P2 == 0).any(dim=1)
        if bool(lacking.any()):
            raise ValueError(f"pair {int(numbers[lacking][0])} lacks its chosen or its rejected side")
        return cls(place_S, counts_P2)

    def sums(self, values_S: Tensor) -> Tensor:
        """The sum of the values over each side, (P, 2)."""
        flat = values_S.new_zeros(self.counts_P2.numel()).index_add(0, self.place_S, values_S)
        return flat.view(-1, 2)

    def means(self, values_S: Tensor) -> Tensor:
        """The mean of the values over each side, (P, 2)."""
        return self.sums(values_S) / self.counts_P2

    def shared_out(self, loss_P: Tensor) -> Tensor:
        """A number a position, (S,), whose sum over a pair is the pair's loss."""
        return (loss_P / self.counts_P2.sum(dim=1))[self.place_S // 2]


def margin(sides_P2: Tensor) -> Tensor:
    """The chosen side's value less the rejected one's, (P,)."""
    return sides_P2[:, 1] - sides_P2[:, 0]


def log_ratio_to_reference(logprobs_S: Tensor, inputs: Inputs) -> Tensor:
    """``logp - reference_logprobs``."""
    return logprobs_S - inputs[REFERENCE]
