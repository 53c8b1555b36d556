"""The rows of a source, read by the first format that fits them; what cannot be read is set aside with its reason."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Generic, Literal, Protocol, TypeVar

from crucible_train.config.redaction import hide_secrets
from crucible_train.data.conversations import Format, FormatTable, Row
from crucible_train.data.rows import BadRow, Quarantine, Reason, SetAside
from crucible_train.errors import DataError
from crucible_train.ports import DatasetStore

T = TypeVar("T")
FormT = TypeVar("FormT")


class RowFields(Protocol):
    """What a configuration says of rows."""

    @property
    def format(self) -> str:
        """A format's name, or ``auto``."""

    @property
    def columns(self) -> dict[str, str]:
        """Our column name -> the file's."""

    @property
    def max_rows(self) -> int | None:
        """Read only so many; None reads all."""

    @property
    def on_bad_row(self) -> Literal["stop", "quarantine"]:
        """Whether a bad row stops the run."""


class SourceRows(Generic[FormT, T]):
    """Reads a source once.

    After that ``format`` is the format that was found, None where no row told, and ``columns`` are those it reads.
    """

    def __init__(
        self,
        table: FormatTable[FormT],
        read: Callable[[Row, Format[FormT], Mapping[str, str], str], T],
        config: RowFields,
        quarantine: Quarantine,
    ) -> None:
        """Read with one of the formats of ``table``.

        Args:
            table: the formats.
            read: what a row means, given its format, the renames of columns, and its place; DataError where it means
                nothing.
            config: which format, which columns, how many rows.
            quarantine: takes the rows that cannot be read.
        """
        self.format: Format[FormT] | None = None if config.format == "auto" else table.named(config.format)
        self.columns: tuple[str, ...] = ()
        self._table, self._read, self._config, self._quarantine = table, read, config, quarantine

    def read(self, store: DatasetStore, source: str) -> Iterator[T]:
        """What the rows mean, in order.

        Raises:
            DataError: the source cannot be read, or no format fits its rows.
        """
        config, misfit = self._config, None
        for row in islice(store.rows(source), config.max_rows):
            if row.values is None:
                bad = BadRow(row.where, Reason.UNREADABLE, row.problem or "unreadable", row.snippet)
                self._quarantine.add(bad)
                continue
            try:
                found = self._meaning(row.values, row.where)
            except DataError as error:
                if self.format is None:
                    misfit = misfit or DataError(f"{hide_secrets(source)}: {error}")
                    if config.on_bad_row == "stop":
                        raise misfit from error
                reason = error.reason if isinstance(error, SetAside) else Reason.NOT_A_CONVERSATION
                self._quarantine.add(BadRow(row.where, reason, str(error)))
                continue
            yield found
        if self.format is None and misfit is not None:
            raise misfit

    def _meaning(self, values: Mapping[str, Any], where: str) -> T:
        present = [*self._config.columns, *values]
        self.format = self.format or self._table.detect(present)
        self.columns = self.columns or self.format.columns(present) or ()
        return self._read(values, self.format, self._config.columns, where)
