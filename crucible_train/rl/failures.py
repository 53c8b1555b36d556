"""What becomes of a group of which an episode fails: a value, with a constructor for each kind."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """How failing episodes are taken.

    Attributes:
        stops_run: the first failure is raised.
        num_tries: how often an episode is tried in all.
        min_share: the group is kept where at least this share of it, and one episode, is left.
    """

    stops_run: bool = False
    num_tries: int = 1
    min_share: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_tries < 1 or not 0 <= self.min_share <= 1:
            raise ValueError(f"a failure policy is out of its range: {self}")

    @classmethod
    def fail_fast(cls) -> Self:
        """The first failure stops the run."""
        return cls(stops_run=True)

    @classmethod
    def retry(cls, num_tries: int) -> Self:
        """An episode that fails is tried again, with other draws; one that fails in every try is left out."""
        return cls(num_tries=num_tries)

    @classmethod
    def min_viable(cls, min_share: float) -> Self:
        """Episodes that fail are left out; the group is given up where too few are left."""
        return cls(min_share=min_share)

    def keeps(self, num_good: int, group_size: int) -> bool:
        """Whether a group of which so many are good is kept."""
        return num_good >= max(1.0, self.min_share * group_size)
