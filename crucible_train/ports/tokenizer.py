"""The tokenizer port: ordinary text is never mistaken for a control token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of a text and, for each, the half-open range of characters it came from."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into ids and back.

    Invariants, which ``tests/contracts/test_tokenizer_port.py`` holds every adapter to:

    - ``encode`` treats its text as ordinary: the name of a control token in it becomes several ordinary ids.
    - ``decode(encode(text)) == text`` up to the tokenizer's own Unicode normalisation.
    - Nothing is added at either end.
    """

    @property
    def name(self) -> str:
        """A path or an id, for messages."""

    @property
    def sha256(self) -> str:
        """The digest of everything that decides which ids a text gets."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Every added token and its id: the only way to reach one."""

    @property
    def bos_token(self) -> str | None:
        """The token that opens a text, where the model has one."""

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja template, where it has one."""

    def encode(self, text: str) -> Sequence[int]:
        """The ids of ordinary text."""

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """The ids of several ordinary texts, each of shape (T,) and not to be written to."""

    def encode_with_offsets(self, texts: Sequence[str]) -> Sequence[Encoded]:
        """The same ids, with the characters each came from."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control tokens appear by their names."""

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> Sequence[str]:
        """The texts of several sequences of ids."""
