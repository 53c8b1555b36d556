"""What a loss over preferences gives each preference, from log-probabilities or rewards that are known.

Axes: D datums, N positions of a datum, S positions that count, R preferences.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from crucible_train.losses import LossFunction, bradley_terry, loss_function
from crucible_train.types import AnyPreferenceLoss, BradleyTerry, Datum


def losses_by_preference(
    loss: AnyPreferenceLoss, datums_D: Sequence[Datum], logprobs_D: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float64]:
    """The loss of each pair, or of each datum where the loss is over single ones: (R,), in the order of the datums.

    Weights choose positions, and multiply nothing. For ``BradleyTerry`` the last value of each datum is its reward.
    """
    if isinstance(loss, BradleyTerry):
        rewards_D = torch.tensor([float(values_N[-1]) for values_N in logprobs_D], dtype=torch.float64)
        return np.asarray(bradley_terry.per_pair(rewards_D[0::2], rewards_D[1::2]).numpy(), np.float64)
    function = loss_function(loss)
    assert isinstance(function, LossFunction)
    counts_D = [datum.loss_fn_inputs["weights"].to_numpy() != 0 for datum in datums_D]

    def joined(arrays_D: Sequence[npt.NDArray[np.number]]) -> torch.Tensor:
        parts = [array[counts] for array, counts in zip(arrays_D, counts_D, strict=True)]
        return torch.from_numpy(np.concatenate(parts).astype(np.float64))

    inputs_S = {name: joined([d.loss_fn_inputs[name].to_numpy() for d in datums_D]) for name in function.required}
    sizes_D = [int(counts.sum()) for counts in counts_D]
    datum_S = torch.from_numpy(np.repeat(np.arange(len(datums_D)), sizes_D))
    loss_S = function.per_position(loss, joined(logprobs_D), inputs_S, datum_S).numpy()
    owner_S = datum_S.numpy() if function.coupled_by is None else inputs_S[function.coupled_by].numpy()
    _, first_R, place_S = np.unique(owner_S, return_index=True, return_inverse=True)
    by_owner_R = np.bincount(place_S, loss_S)
    return np.asarray(by_owner_R[np.argsort(first_R)], np.float64)
