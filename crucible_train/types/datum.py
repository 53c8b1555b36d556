"""What a training step reads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from crucible_train.types.model_input import ModelInput

Dtype = Literal["int64", "float32"]


@dataclass(frozen=True, slots=True, eq=False)
class TensorData:
    """A typed array: flat ``data``, its ``dtype`` and its ``shape``.

    Raises:
        ValueError: the product of the shape is not the number of values, or the dtype is unknown or does not fit them.
    """

    data: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    dtype: Dtype
    shape: tuple[int, ...]

    def __init__(
        self, data: Sequence[float] | npt.NDArray[np.number], dtype: Dtype, shape: Sequence[int] | None = None
    ) -> None:
        """Check shape, dtype and values; a missing shape means one axis."""
        if dtype not in get_args(Dtype):
            raise ValueError(f"dtype must be int64 or float32, not {dtype!r}")
        values = np.asarray(data)
        shape = tuple(values.shape if shape is None else shape)
        if any(size < 0 for size in shape) or math.prod(shape) != values.size:
            raise ValueError(f"shape {shape} holds {math.prod(shape)} values, but {values.size} were given")
        if dtype == "int64" and values.size and not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"dtype int64 was asked for, but the values are {values.dtype}")
        object.__setattr__(self, "data", values.astype(dtype, copy=False).reshape(-1))
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def from_numpy(cls, array: npt.NDArray[np.number]) -> Self:
        """Take shape and kind from an array: whole numbers become int64, others float32."""
        return cls(array, "int64" if np.issubdtype(array.dtype, np.integer) else "float32", array.shape)

    def to_numpy(self) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
        """The array in its shape."""
        return self.data.reshape(self.shape)

    def tolist(self) -> list[float]:
        """The values in their shape, as nested lists."""
        return list(self.to_numpy().tolist())

    def __eq__(self, other: object) -> bool:
        """Equal when dtype, shape and values are."""
        return (
            isinstance(other, TensorData)
            and self.dtype == other.dtype
            and self.shape == other.shape
            and np.array_equal(self.data, other.data)
        )

    def __hash__(self) -> int:
        """Agree with ``__eq__``."""
        return hash((self.dtype, self.shape, self.data.tobytes()))


@dataclass(frozen=True, slots=True)
class Datum:
    """One sequence to train on.

    Args:
        model_input: N positions.
        loss_fn_inputs: one array a name, each of N along its first axis. Targets are already one ahead of the input:
            ``target_tokens[i]`` is what position ``i`` is to predict.
        teacher_input: what a teacher reads instead, for losses that compare with one.

    Raises:
        ValueError: an array is not as long as the input.
    """

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, TensorData]
    teacher_input: ModelInput | None = None

    def __post_init__(self) -> None:
        """Check the lengths."""
        for name, tensor in self.loss_fn_inputs.items():
            if not tensor.shape or tensor.shape[0] != self.model_input.length:
                raise ValueError(
                    f"{name} has shape {tensor.shape}, but the input has {self.model_input.length} positions"
                )

    @property
    def num_tokens(self) -> int:
        """How many positions the input has."""
        return self.model_input.length


@dataclass(frozen=True, slots=True)
class TokensWithLogprobs:
    """What a sampler wrote.

    Attributes:
        tokens: the ids, the stop token included where one was sampled.
        logprobs: the natural log-probability of each, or None where they were not asked for.
        stop_reason: ``stop`` for a stop token or stop text, ``length`` for the limit.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    stop_reason: Literal["stop", "length"]

    def __post_init__(self) -> None:
        """Check that there is one log-probability a token."""
        if self.logprobs is not None and len(self.logprobs) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.logprobs)} log-probabilities")
