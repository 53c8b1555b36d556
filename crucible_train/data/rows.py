"""Rows that cannot be used: why, and what becomes of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from crucible_train import files
from crucible_train.errors import DataError

_NUM_SHOWN = 5
_EXAMPLE = 'a conversation, such as {"prompt": "What is 2 + 2?", "completion": "4"}'


class Reason(StrEnum):
    """Why a row cannot be used."""

    UNREADABLE = "unreadable"
    """Broken JSON, wrong encoding, not an object."""
    NOT_A_CONVERSATION = "not_a_conversation"
    """Columns, fields or roles are missing or wrong."""
    NOT_RENDERABLE = "not_renderable"
    """The chat format cannot express it."""
    NOTHING_TRAINED = "nothing_trained"
    """No token of it would be trained."""
    TOO_LONG = "too_long"
    """It has more tokens than ``data.max_length``."""
    EQUAL_SIDES = "equal_sides"
    """Its two completions are the same."""
    DIFFERENT_PROMPTS = "different_prompts"
    """Its two completions answer different prompts."""
    TIE = "tie"
    """Neither of its completions is preferred."""


NEVER_STOPS = frozenset({Reason.EQUAL_SIDES, Reason.DIFFERENT_PROMPTS, Reason.TIE})
"""Reasons of sound rows that say nothing of what is preferred: they are set aside, whatever else stops a run."""


class SetAside(DataError):
    """A row cannot be used, for a reason of its own."""

    def __init__(self, reason: Reason, problem: str) -> None:
        """Keep the reason."""
        self.reason = reason
        super().__init__(problem)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: its place, the reason and what exactly is wrong."""

    where: str
    reason: Reason
    problem: str
    snippet: str | None = None

    @property
    def line(self) -> str:
        """One line for a person."""
        return f"{self.where}: {self.problem}" + (f"   {self.snippet!r}" if self.snippet else "")


@dataclass(slots=True)
class Quarantine:
    """Gathers bad rows; at the end it stops the run or writes them down, as configured.

    ``example`` is a row as it should be, for whoever has none.
    """

    on_bad_row: Literal["stop", "quarantine"]
    rows: list[BadRow] = field(default_factory=list)
    example: str = _EXAMPLE
    num_good: int = field(default=0, init=False)
    _num_settled: int = field(default=0, init=False)

    def add(self, row: BadRow) -> None:
        """Set a row aside."""
        self.rows.append(row)

    def settle(self, num_good: int, name: str, *, may_be_empty: bool = False) -> None:
        """Count the good rows of a source, ``name``, whose bad ones have all been added.

        Raises:
            DataError: it has no good row. Where bad ones stop the run, ``close`` says so, with all of them.
        """
        bad, self._num_settled = self.rows[self._num_settled :], len(self.rows)
        self.num_good += num_good
        if not (num_good or may_be_empty or self._stopping):
            raise DataError(_nothing_left(name, bad, self.example))

    def counts(self) -> dict[str, int]:
        """How many there are of each reason."""
        return _counts(self.rows)

    def close(self, path: Path) -> None:
        """Stop the run, or write the rows to ``path``, one JSON object each.

        Raises:
            DataError: a row is bad and the configuration says stop.
        """
        if stopping := self._stopping:
            raise DataError(_listing(stopping, len(self.rows) + self.num_good))
        files.write_text(path, "".join(files.canonical_json(asdict(row)) + "\n" for row in self.rows))

    @property
    def _stopping(self) -> list[BadRow]:
        """The rows that stop the run."""
        return [row for row in self.rows if row.reason not in NEVER_STOPS] if self.on_bad_row == "stop" else []


def _counts(rows: Sequence[BadRow]) -> dict[str, int]:
    return dict(sorted(Counter(str(row.reason) for row in rows).items()))


def _nothing_left(name: str, bad: Sequence[BadRow], example: str) -> str:
    if not bad:
        return f"{name}: it holds no rows; a row is {example}"
    why = ", ".join(f"{reason} {count}" for reason, count in _counts(bad).items())
    return f"{name}: none of its {len(bad)} rows can be used ({why}); the first: {bad[0].line}"


def bad_rows(num: int) -> str:
    """A count in words: ``1 bad row``, ``2 bad rows``."""
    return f"{num:,} bad row{'' if num == 1 else 's'}"


def _listing(rows: Sequence[BadRow], num_rows: int) -> str:
    lines = [row.line for row in rows[:_NUM_SHOWN]]
    more = f" (the first {_NUM_SHOWN} are shown)" if len(rows) > _NUM_SHOWN else ""
    are, them = ("is", "it") if len(rows) == 1 else ("are", "them")
    lines.append(
        f"{len(rows)} of {num_rows} rows {are} bad{more}; mend {them}, or set {them} aside with "
        "data.on_bad_row=quarantine"
    )
    return "\n".join(lines)


def merge_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Add up several counts by reason."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))
