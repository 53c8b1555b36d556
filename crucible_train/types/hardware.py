"""Where and how a run computes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device, the precision of its matrix products and its threads, as resolved on one machine.

    ``description`` is the line a user sees; it changes nothing.
    """

    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    num_threads: int
    description: str = ""
