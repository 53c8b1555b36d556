"""From rendered preferences to the datums of a step.

Axes: T tokens of a sequence, N = T - 1 positions of its datum, S positions that count.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crucible_train.data.preference_tables import RenderedPreference, Side
from crucible_train.judges import up_to_reward
from crucible_train.types import Datum, ModelInput, TensorData

Floats = npt.NDArray[np.float32]


def side_datum(
    side: Side,
    scale: float = 1.0,
    *,
    number: int | None = None,
    pair: int | None = None,
    reference_S: Floats | None = None,
    reference_point: float | None = None,
) -> Datum:
    """One sequence, shifted by one; what is None is left out.

    Args:
        side: its tokens, and which of them count.
        scale: the weight of each that does.
        number: 1 in a chosen completion, -1 in a rejected one.
        pair: the number of its pair.
        reference_S: the log-probabilities of the model before training.
        reference_point: what KTO measures from.
    """
    counts_N = side.weights_T[1:] != 0
    inputs = {
        "target_tokens": TensorData(side.tokens_T[1:].astype(np.int64), "int64"),
        "weights": TensorData(counts_N * np.float32(scale), "float32"),
    }
    if number is not None:
        inputs["side"] = TensorData(np.full(counts_N.size, number, np.float32), "float32")
    if pair is not None:
        inputs["pair"] = TensorData(np.full(counts_N.size, pair, np.int64), "int64")
    if reference_S is not None:
        reference_N = np.zeros(counts_N.size, np.float32)
        reference_N[counts_N] = reference_S
        inputs["reference_logprobs"] = TensorData(reference_N, "float32")
    if reference_point is not None:
        inputs["reference_point"] = TensorData(np.full(counts_N.size, reference_point, np.float32), "float32")
    return Datum(ModelInput.from_ints(side.tokens_T[:-1]), inputs)


def rewarded_datum(side: Side, scale: float) -> Datum:
    """One sequence up to where its reward is read, as a judge reads it; the last weight multiplies its pair's loss."""
    tokens_T = up_to_reward(side.tokens_T, side.weights_T)
    weights_T = np.zeros(tokens_T.size, np.float32)
    weights_T[-1] = scale
    return Datum(ModelInput.from_ints(tokens_T), {"weights": TensorData(weights_T, "float32")})


def mismatched(preferences: Sequence[RenderedPreference], index: int) -> Side:
    """The prompt of a preference before a completion of the next one: what KTO estimates the divergence with.

    Chosen and rejected completions take turns, where there are both. It is as long as the longer of the two at most.
    """
    before, other = preferences[index], preferences[(index + 1) % len(preferences)]
    prompt_of, completion_of = before.sides[0][1], other.sides[index % len(other.sides)][1]
    num, start = prompt_of.num_prompt, completion_of.num_prompt
    room = max(prompt_of.tokens_T.size, completion_of.tokens_T.size) - num
    end = start + max(1, room)
    return Side(
        np.concatenate([prompt_of.tokens_T[:num], completion_of.tokens_T[start:end]]),
        np.concatenate([prompt_of.weights_T[:num], completion_of.weights_T[start:end]]),
    )
