"""Splitting a command line into actions and given values. Nothing is interpreted here but the dashes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from crucible_train.config.actions import ACTIONS, FLAGS
from crucible_train.config.plain_words import shown
from crucible_train.config.reading import BOOLEANS
from crucible_train.config.redaction import REDACTED, is_private_name
from crucible_train.config.sources import Given, Place, Problem


@dataclass(frozen=True)
class Words:
    """A command line, split."""

    actions: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()
    givens: tuple[Given, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass
class _Splitting:
    argv: Sequence[str]
    is_flag: Callable[[str], bool]
    is_name: Callable[[str], bool]
    position: int = 0
    actions: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    givens: list[Given] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def place(self) -> Place:
        return Place(word=self.position)

    def refuse(self, text: str) -> None:
        self.problems.append(Problem(self.place, text))

    def next_value(self, key: str) -> str | None:
        """Take the following word as the value of ``--key``, unless it is an option, or the flag needs none."""
        if self.position + 1 >= len(self.argv):
            return None
        word = self.argv[self.position + 1]
        if word.startswith("--") or word == "-h" or (self.is_flag(key) and "=" in word):
            return None
        self.position += 1
        return word


def split(argv: Sequence[str], is_flag: Callable[[str], bool], is_name: Callable[[str], bool]) -> Words:
    """Split ``argv``.

    Args:
        argv: the words after the program's name.
        is_flag: whether a name may stand without a value, which then is true.
        is_name: whether a word is the name of a field, for a better message where its value is missing.
    """
    state = _Splitting(argv, is_flag, is_name)
    while state.position < len(argv):
        _one_word(argv[state.position], state)
        state.position += 1
    return Words(frozenset(state.actions), tuple(state.files), tuple(state.givens), tuple(state.problems))


def _one_word(word: str, state: _Splitting) -> None:
    if word == "-h":
        state.actions.add("help")
    elif word.startswith("--") and word[2:3] not in ("", "="):
        key, equals, value = word[2:].partition("=")
        _option(key, value if equals else None, state)
    elif "=" in word and word[0] not in "-=":
        key, _, value = word.partition("=")
        _option(key, value, state)
    else:
        state.refuse(_not_understood(word, state))


def _option(key: str, value: str | None, state: _Splitting) -> None:
    name = key.replace("-", "_")
    if name in ACTIONS:
        _action(name, value, state)
        return
    place = state.place
    if value is None:
        value = state.next_value(key)
    if value is None and state.is_flag(key):
        value = "true"
    if name == "config":
        _file(value, state)
    elif value is not None:
        state.givens.append(Given(key, "", value, place))
    elif state.is_name(key):
        state.problems.append(Problem(place, f"{key}: needs a value"))
    else:
        state.givens.append(Given(key, "", "", place))


def _action(name: str, value: str | None, state: _Splitting) -> None:
    wanted = True if value is None else BOOLEANS.get(value.lower())
    if wanted is None:
        state.refuse(f"{name}: must be true or false, not {shown(value)}")
    elif wanted:
        state.actions.add(name)


def _file(value: str | None, state: _Splitting) -> None:
    if not value:
        state.refuse("config: needs the name of a YAML file")
    elif state.files:
        state.refuse("config: given twice; one file is read, and field=value beats it")
    else:
        state.files.append(value)


def _not_understood(word: str, state: _Splitting) -> str:
    if word.endswith((".yaml", ".yml")):
        return f"{shown(word)}: not understood; did you mean --config {word}?"
    if state.is_name(word):
        return f"{word}: needs a value; write {word}=VALUE"
    before = state.argv[state.position - 1] if state.position else ""
    if is_private_name(before):
        return f"{REDACTED}: not understood; write field=value"
    stripped = word.lstrip("-")
    if word.startswith("-") and state.is_name(stripped.partition("=")[0]):
        return f"{shown(word)}: not understood; did you mean --{shown(stripped)[1:-1]}?"
    flag = next((flag for flag in FLAGS if _letters(flag) == _letters(stripped)), None)
    return f"{shown(word)}: not understood; {f'did you mean {flag}?' if flag else 'write field=value'}"


def _letters(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")
