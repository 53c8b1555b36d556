"""What a model reads: chunks of encoded text and images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTextChunk:
    """Token ids, shape (T,), int32. Any sequence of whole numbers is accepted and checked."""

    tokens: npt.NDArray[np.int32]

    def __init__(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> None:
        """Check that the ids are whole numbers, none negative."""
        array = np.asarray(tokens)
        if array.size == 0:
            array = array.astype(np.int32)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"tokens must be a flat list of whole numbers, not {array.dtype} of shape {array.shape}")
        if array.size and (int(array.min()) < 0 or int(array.max()) > np.iinfo(np.int32).max):
            raise ValueError("token ids must lie between 0 and 2**31 - 1")
        object.__setattr__(self, "tokens", array.astype(np.int32, copy=False))

    @classmethod
    def trusted(cls, tokens: npt.NDArray[np.int32]) -> Self:
        """A chunk of ids that are known to be sound, unchecked."""
        chunk = cls.__new__(cls)
        object.__setattr__(chunk, "tokens", tokens)
        return chunk

    @property
    def length(self) -> int:
        """How many positions the chunk takes."""
        return int(self.tokens.size)

    def __eq__(self, other: object) -> bool:
        """Equal when the ids are."""
        return isinstance(other, EncodedTextChunk) and np.array_equal(self.tokens, other.tokens)

    def __hash__(self) -> int:
        """Agree with ``__eq__``."""
        return hash(self.tokens.tobytes())


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """An encoded picture that takes ``expected_tokens`` positions, each written as ``placeholder_id`` in plain ids."""

    data: bytes
    format: Literal["png", "jpeg"]
    expected_tokens: int
    placeholder_id: int

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.expected_tokens < 1 or self.placeholder_id < 0:
            raise ValueError("an image needs at least one position and a placeholder id of 0 or more")

    @property
    def length(self) -> int:
        """How many positions the picture takes."""
        return self.expected_tokens


Chunk = EncodedTextChunk | ImageChunk


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A sequence of chunks, read from left to right."""

    chunks: tuple[Chunk, ...] = ()

    @classmethod
    def from_ints(cls, tokens: Sequence[int] | npt.NDArray[np.integer]) -> Self:
        """One text chunk of these ids."""
        return cls((EncodedTextChunk(tokens),))

    @classmethod
    def empty(cls) -> Self:
        """No chunks."""
        return cls()

    @property
    def length(self) -> int:
        """How many positions the input takes."""
        return sum(chunk.length for chunk in self.chunks)

    @property
    def is_text(self) -> bool:
        """Whether no chunk is an image."""
        return all(isinstance(chunk, EncodedTextChunk) for chunk in self.chunks)

    def append(self, chunk: Chunk) -> "ModelInput":
        """This input with one more chunk at its end."""
        return ModelInput((*self.chunks, chunk))

    def append_ints(self, tokens: Iterable[int]) -> "ModelInput":
        """This input with these ids at its end, in the last chunk where that is text."""
        added = EncodedTextChunk(list(tokens))
        if self.chunks and isinstance(last := self.chunks[-1], EncodedTextChunk):
            return ModelInput((*self.chunks[:-1], EncodedTextChunk(np.concatenate([last.tokens, added.tokens]))))
        return self.append(added)

    def to_array(self) -> npt.NDArray[np.int32]:
        """The ids, shape (T,); an image gives its placeholder id at each of its positions."""
        if len(self.chunks) == 1 and isinstance(only := self.chunks[0], EncodedTextChunk):
            return only.tokens
        parts = [
            chunk.tokens
            if isinstance(chunk, EncodedTextChunk)
            else np.full(chunk.expected_tokens, chunk.placeholder_id, np.int32)
            for chunk in self.chunks
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def to_ints(self) -> list[int]:
        """The ids as a list."""
        return [int(token) for token in self.to_array()]
