"""What is preferred to what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crucible_train.types.messages import Message


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions of one prompt of which one is preferred; or one alone that is wanted or unwanted.

    Attributes:
        prompt: the messages that are answered.
        chosen: the messages of the preferred, or wanted, completion; None where there is only an unwanted one.
        rejected: those of the other, or unwanted, one; None where there is only a wanted one.
        tools: OpenAI-style declarations of what the assistant may call.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...] | None
    rejected: tuple[Message, ...] | None
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Check that there is a completion."""
        if self.chosen is None and self.rejected is None:
            raise ValueError("there is no completion")

    @property
    def is_pair(self) -> bool:
        """Whether there are two completions."""
        return self.chosen is not None and self.rejected is not None
