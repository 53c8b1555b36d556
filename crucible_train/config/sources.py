"""Where a value came from, and what is wrong with it there."""

from dataclasses import dataclass

from yaml import Node

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Place:
    """A file, with line and column where they are known (0 is unknown), or the nth word of the command line."""

    file: str = ""
    line: int = 0
    column: int = 0
    word: int = 0

    def __str__(self) -> str:
        """``sft.yaml:8``, as editors and terminals link it, or ``command line``."""
        if not self.file:
            return COMMAND_LINE
        return ":".join([self.file, *(str(number) for number in (self.line, self.column) if number)])

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sorts the file before the command line, and each from its top."""
        return (not self.file, self.line, self.word)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    place: Place
    text: str

    def __str__(self) -> str:
        """The line that the user reads; what cannot be printed, such as a line's end, is escaped."""
        line = f"{self.place}: {self.text}"
        return "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)


@dataclass(frozen=True)
class Given:
    """One value as the user gave it.

    Attributes:
        key: the name as written, dotted, with the sections it lies in.
        section: the YAML section that it is written in; empty at the top and on the command line.
        value: a YAML node, or a text from the command line.
        place: where it was given.
    """

    key: str
    section: str
    value: Node | str
    place: Place

    @property
    def path(self) -> str:
        """The key with underscores for dashes, as our own names are written."""
        return self.key.replace("-", "_")
