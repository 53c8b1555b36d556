"""The dataset port: rows with the place each came from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row, or what stands where a row should be.

    Attributes:
        where: ``file:line`` (and ``:column`` for broken JSON), or ``file row N`` for tables; rows count from 1.
        values: the row by column, or None if it could not be read.
        problem: why it could not be read.
        snippet: a few characters of the offending text.
    """

    where: str
    values: Mapping[str, Any] | None
    problem: str | None = None
    snippet: str | None = None


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """A data set that was found: the digest of its content and the files it consists of."""

    source: str
    sha256: str
    files: tuple[str, ...]
    num_bytes: int


@runtime_checkable
class DatasetStore(Protocol):
    """Reads data sets.

    Invariants, which ``tests/contracts/test_dataset_store_port.py`` holds every adapter to:

    - Rows come in a fixed order; reading twice gives the same rows.
    - Every row of the source comes out once, readable or not; none is dropped.
    """

    def describe(self, source: str) -> SourceInfo:
        """Find a data set and digest it.

        Raises:
            DataError: there is nothing there, or nothing that can be read; the text says what was found.
        """

    def rows(self, source: str) -> Iterator[SourceRow]:
        """The rows of a data set, in order."""
