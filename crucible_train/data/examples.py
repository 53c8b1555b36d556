"""Rendered examples, and the datums they become."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from crucible_train.types import Datum, ModelInput, TensorData


@dataclass(frozen=True, slots=True)
class Example:
    """One rendered sequence.

    Attributes:
        tokens_T: ids, int32.
        weights_T: how much each token counts as a target, float32, unshifted.
        row: the conversation it comes from.
        num_bytes: UTF-8 bytes of the text of its trained tokens.
    """

    tokens_T: npt.NDArray[np.int32]
    weights_T: npt.NDArray[np.float32]
    row: int
    num_bytes: int


def datum(example: Example, scale: float = 1.0) -> Datum:
    """Shift an example by one: position n is to predict token n + 1, with that token's weight times ``scale``."""
    return Datum(
        ModelInput.from_ints(example.tokens_T[:-1]),
        {
            "target_tokens": TensorData(example.tokens_T[1:].astype(np.int64), "int64"),
            "weights": TensorData(example.weights_T[1:] * np.float32(scale), "float32"),
        },
    )


def normalised(examples: Sequence[Example], normalisation: Literal["token", "example"]) -> list[Datum]:
    """The datums of one optimizer step, scaled so that their summed loss is a mean.

    ``token``: the mean over all trained tokens of the step. ``example``: the mean over examples of their token means.
    However the step is then cut into passes, the loss and its gradient stay the same.
    """
    totals = [float(example.weights_T[1:].sum(dtype=np.float64)) for example in examples]
    if normalisation == "token":
        scales = [1.0 / sum(totals)] * len(examples)
    else:
        scales = [1.0 / (total * len(examples)) for total in totals]
    return [datum(example, scale) for example, scale in zip(examples, scales, strict=True)]
