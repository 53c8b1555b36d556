"""``-log sigmoid(r_chosen - r_rejected)``: the one loss over rewards, and not over log-probabilities.

Axes: P pairs.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def per_pair(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """The negative log-likelihood that the chosen answer of each pair is preferred."""
    return -logsigmoid(chosen_P - rejected_P)
