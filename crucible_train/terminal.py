"""The terminal: lines for people, on standard output. Colour and bars only where there is a terminal."""

import argparse
from typing import NoReturn

from rich.console import Console

from crucible_train.errors import ConfigError

_console: Console | None = None


def console() -> Console:
    """The one console of this process. Where output is no terminal, lines are never wrapped."""
    global _console  # noqa: PLW0603 - a process has one standard output
    if _console is None:
        found = Console(highlight=False, soft_wrap=True)
        _console = found
    return _console


def has_colours() -> bool:
    """Whether output goes to a terminal that shows colours, and nobody asked for none."""
    return console().color_system is not None and not console().no_color


def say(line: str, style: str | None = None) -> None:
    """Print a line as it is: no markup is read in it."""
    console().print(line, style=style, markup=False, emoji=False)


def field(name: str, text: str) -> None:
    """Print a named line, names in a column."""
    say(f"{name:<10} {text}")


class WordParser(argparse.ArgumentParser):
    """Reads the words of a small command; what it cannot read is a ``ConfigError`` like any other wrong input."""

    def error(self, message: str) -> NoReturn:
        """Refuse the words.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message} (--help says what there is)")
