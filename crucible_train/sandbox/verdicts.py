"""Tests of a solution, and the verdict on it: what came back is compared here, outside the process under test."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crucible_train.errors import DataError
from crucible_train.sandbox.execution import PlainCall, Run
from crucible_train.sandbox.limits import Result, Status

_RELATIVE = 1e-6  # of the larger of two numbers
_ABSOLUTE = 1e-12  # beside an expected 0, what rounding leaves; a wrong small number is no 0


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the function under test, and what it is to return. All values are of JSON's kinds."""

    args: Sequence[Any]
    expected: Any
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one function: ``"name"``, or ``"Class.method"`` of a new instance each."""

    function: str
    cases: Sequence[Call]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a program reads from standard input, and what it is to write, up to white space at the ends of lines."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a solution is worth.

    Attributes:
        status: how its run ended; of several runs, the first that is not ``ok``.
        passed: for each test, whether it passed. Those before a limit was met count.
        detail: the first failure, for a person to read.
    """

    status: Status
    passed: tuple[bool, ...]
    detail: str

    @property
    def all_passed(self) -> bool:
        """Whether there were tests and each passed."""
        return bool(self.passed) and all(self.passed)

    @property
    def fraction(self) -> float:
        """Passed tests / tests; 0 without tests."""
        return sum(self.passed) / len(self.passed) if self.passed else 0.0


def plain_calls(tests: Calls) -> tuple[list[PlainCall], list[Any]]:
    """The arguments, which enter the sandbox, and the expected values, which do not; both as JSON reads them back."""
    try:
        calls = [(_plain(list(case.args)), _plain(dict(case.kwargs))) for case in tests.cases]
        return calls, [_plain(case.expected) for case in tests.cases]
    except (TypeError, ValueError, RecursionError) as problem:
        raise DataError(f"a test of {tests.function} is not JSON: {problem}") from problem


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def calls_verdict(run: Run, expected: Sequence[Any]) -> Verdict:
    """The verdict on the values that came back."""
    passed = tuple(index in run.values and _reads_as(run.values[index], value) for index, value in enumerate(expected))
    detail = "" if all(passed) else _failure(run, passed.index(False))
    return Verdict(run.result.status, passed, detail)


def _failure(run: Run, index: int) -> str:
    if index in run.values:
        return f"call {index} returned {_shown(run.values[index][:200])}"
    if index in run.raised:
        return f"call {index} raised {_shown(run.raised[index][:200])}"
    last = _shown(run.result.stderr.strip()[-200:].rpartition("\n")[2])
    return f"call {index} did not return: {run.result.status} {last}".rstrip()


def _shown(text: str) -> str:
    """Untrusted text in one line, without control characters that a terminal would obey."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _reads_as(text: str, expected: Any) -> bool:
    try:
        return same(json.loads(text), expected)
    except (ValueError, RecursionError):
        return False


def same(value: Any, expected: Any) -> bool:
    """Equality of JSON values: truth values only equal themselves, numbers to a millionth where one is a float."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(expected, int | float) and isinstance(value, int | float):
        return _same_number(value, expected)
    if isinstance(expected, list) and isinstance(value, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(expected, dict) and isinstance(value, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key]) for key in expected)
    return type(value) is type(expected) and bool(value == expected)


def _same_number(value: float, expected: float) -> bool:
    if isinstance(value, int) and isinstance(expected, int):
        return value == expected
    try:
        both_nan = math.isnan(value) and math.isnan(expected)
        return both_nan or math.isclose(value, expected, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    except OverflowError:
        return False  # an integer no float can hold


def exchanges_verdict(results: Sequence[Result], tests: Sequence[Exchange]) -> Verdict:
    """The verdict on what a program wrote; it has to end well too."""
    passed = tuple(
        result.status is Status.OK and _lines(result.stdout) == _lines(test.stdout)
        for result, test in zip(results, tests, strict=True)
    )
    status = next((result.status for result in results if result.status is not Status.OK), Status.OK)
    if all(passed):
        return Verdict(status, passed, "")
    first = passed.index(False)
    wrote = (results[first].stderr if results[first].status is Status.ERROR else results[first].stdout).strip()
    return Verdict(status, passed, f"exchange {first} ended as {results[first].status}: {_shown(wrote[-200:])}")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
