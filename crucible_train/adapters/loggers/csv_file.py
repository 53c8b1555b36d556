"""Metrics as a CSV file: a row a step, a column a metric, empty where a step has none."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from crucible_train import files
from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.ports import Cell, Opened, RunInfo, RunStatus

_STEP = "step"


class CSVLogger(QuietLogger):
    """Writes ``tracking/csv/TRACKER_ID/metrics.csv`` of the run directory, and every table as a file beside it.

    Rows are appended; a metric that was not there before gives the whole file a new column. Numbers are written so
    that reading them gives the same bits. A row that a kill has torn is taken away at the next start.
    """

    def __init__(self) -> None:
        """Nothing is open before the run starts."""
        self._folder: Path | None = None
        self._columns: list[str] = [_STEP]
        self._rows: list[dict[str, Cell]] = []
        self._written: dict[str, str] | None = None

    @property
    def path(self) -> Path:
        """The file of metrics."""
        assert self._folder is not None, "the run has not started"
        return self._folder / "metrics.csv"

    def start(self, run: RunInfo) -> Opened:
        """Go on with the file, where there is one.

        Raises:
            OSError: it cannot be read or written.
        """
        self._folder = run.run_dir / "tracking" / "csv" / (run.tracker_id or run.run_id)
        rows = self._read()
        self._written = rows[-1] if rows else None
        return Opened(self.path.absolute().as_uri(), int(rows[-1][_STEP]) if rows else -1, is_new=not rows)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Put numbers into the row of their step."""
        if self._rows and self._rows[-1][_STEP] == step:
            self._rows[-1].update(metrics)
        else:
            self._rows.append({_STEP: step, **metrics})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Write a table as a file of its own.

        Raises:
            OSError: it cannot be written.
        """
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        files.write_text(self.path.parent / f"{safe}-{step}.csv", _csv([columns, *rows]))

    def flush(self) -> None:
        """Append the rows so far.

        Raises:
            OSError: they cannot be written.
        """
        if not self._rows or self._folder is None:
            return
        is_continued = self._written is not None and int(self._written[_STEP]) == self._rows[0][_STEP]
        new = [name for row in self._rows for name in row if name not in self._columns]
        if new or is_continued or not self.path.is_file():
            self._rewrite(list(dict.fromkeys([*self._columns, *sorted(new)])))
        else:
            text = _csv([[row.get(name) for name in self._columns] for row in self._rows])
            files.append_line(self.path, text.removesuffix("\n"))
            files.sync_file(self.path)
        self._written = {name: str(value) for name, value in self._rows[-1].items()}
        self._rows = []

    def finish(self, status: RunStatus) -> None:
        """Append what is left."""
        self.flush()
        self._folder = None

    def _rewrite(self, columns: list[str]) -> None:
        """Write the file anew, with these columns."""
        rows: list[Mapping[str, Cell]] = [*self._read(), *self._rows]
        joined: dict[int, dict[str, Cell]] = {}
        for row in rows:
            joined.setdefault(int(str(row[_STEP])), {}).update({k: v for k, v in row.items() if v != ""})
        table = [[row.get(name) for name in columns] for row in joined.values()]
        files.write_text(self.path, _csv([columns, *table]))
        self._columns = columns

    def _read(self) -> list[dict[str, str]]:
        """The rows of the file; one that is torn is taken away."""
        if not self.path.is_file():
            self._columns = [_STEP]
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            files.write_text(self.path, whole)
        table = list(csv.reader(io.StringIO(whole)))
        self._columns = table[0] if table else [_STEP]
        return [dict(zip(self._columns, row, strict=True)) for row in table[1:]]


def _csv(rows: Sequence[Sequence[Cell]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
