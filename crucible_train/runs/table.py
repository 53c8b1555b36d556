"""Tables and named lines for a terminal; the same text without colours where there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from crucible_train import terminal
from crucible_train.report.conversations import visible

_GAP = "  "


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a table. ``is_best`` marks it with a star, and green where there are colours."""

    text: str
    is_best: bool = False

    @property
    def shown(self) -> str:
        """What is printed: nothing that a terminal would obey."""
        return visible(self.text) + (" *" if self.is_best else "")


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str | Cell]], indent: str = "") -> None:
    """Print rows under their headings, every column as wide as its widest field."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    widths = [
        max(len(line[i]) for line in (headings, *([c.shown for c in r] for r in cells))) for i in range(len(headings))
    ]
    _show([(heading, "bold") for heading in headings], widths, indent)
    for row in cells:
        _show([(cell.shown, "green" if cell.is_best else "") for cell in row], widths, indent)


def figure(value: float | None) -> str:
    """A number for people: four significant digits; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def heading(text: str) -> None:
    """Print a heading with a blank line before it."""
    terminal.say(f"\n{text}", style="bold")


def _show(parts: Sequence[tuple[str, str]], widths: Sequence[int], indent: str) -> None:
    line = Text(indent)
    for (text, style), width in zip(parts, widths, strict=True):
        line.append(text.ljust(width) + _GAP, style=style)
    line.rstrip()
    terminal.console().print(line, emoji=False)
