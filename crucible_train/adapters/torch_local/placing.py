"""From the scores of a stream back to the datums they belong to.

Axes: D datums, N positions of a datum, S scored positions.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crucible_train.adapters.torch_local.stream import TokenStream
from crucible_train.types import Datum, TensorData


def datum_with_weights(datum: Datum, weights_N: np.ndarray) -> Datum:
    """The datum with other weights."""
    weights = TensorData(weights_N.astype(np.float32), "float32", weights_N.shape)
    return replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, "weights": weights})


def unscored(datum: Datum) -> np.ndarray:
    """A log-probability of 0 for each target."""
    targets = datum.loss_fn_inputs.get("target_tokens")
    return np.zeros((datum.num_tokens,) if targets is None else targets.shape, np.float32)


def scatter(found_D: Sequence[np.ndarray], stream: TokenStream, logprobs_S: np.ndarray) -> None:
    """Put each score where its datum expects it."""
    for index in np.unique(stream.datum_S):
        mine = stream.datum_S == index
        _put(found_D[index], stream.place_S[mine], stream.weights_S[mine], logprobs_S[mine])


def _put(out: np.ndarray, places: np.ndarray, weights: np.ndarray, logprobs: np.ndarray) -> None:
    """Write the rows of one datum, which may have fewer targets a position than others; what has no weight stays 0."""
    if logprobs.ndim == 1:
        out[places] = logprobs
    else:
        found = np.where(weights != 0, logprobs, np.float32(0))
        out[places] = found[:, 0] if out.ndim == 1 else found[:, : out.shape[1]]
