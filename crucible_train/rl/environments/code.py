"""Programs that are to pass tests, run in the sandbox: ``docs/sandbox.md`` says what keeps them in.

A row holds a prompt and its tests, in one of two columns:

    tests       calls: {"function": "add", "cases": [{"args": [1, 2], "expected": 3}, ...]}
    exchanges   what is read and written: [{"stdin": "1 2", "stdout": "3"}, ...]

as JSON, or as text that holds it. The reward is the share of tests that pass, or 1 only where all do.
"""

import atexit
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from crucible_train.config.base import option
from crucible_train.errors import DataError
from crucible_train.ports import DatasetStore
from crucible_train.renderers import Renderer
from crucible_train.rl.problem_env import ProblemEnv
from crucible_train.rl.problem_set import FiniteProblems, Problem
from crucible_train.rl.prompts import Prompt, PromptSource
from crucible_train.sandbox import Call, Calls, Exchange, Limits, Sandbox
from crucible_train.types import Message

Tests = Calls | Sequence[Exchange]
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


class CodeOptions(PromptSource):
    """Where problems come from, and how programs are run."""

    partial_credit: bool = option(True, "reward the share of tests that pass; false: 1 where all pass, else 0")
    format_coef: float = option(0.1, "what an answer without a fenced program costs, 0 or more", ge=0)
    timeout_s: float = option(10.0, "seconds for all calls of a program together, or each exchange, above 0", gt=0)
    memory_mib: int = option(512, "memory that a program may take, in MiB, 64 or more", ge=64)
    allow_unsandboxed: bool = option(
        False, "run programs as yourself where this machine offers no sandbox; otherwise that is refused"
    )


class CodeEnv(ProblemEnv):
    """One program to write."""

    def __init__(
        self, prompt: Prompt, tests: Tests, sandbox: Sandbox, options: CodeOptions, renderer: Renderer
    ) -> None:
        """Ask for it."""
        super().__init__(renderer, format_coef=options.format_coef)
        self._prompt, self._tests, self._sandbox, self._options = prompt, tests, sandbox, options

    @property
    def question(self) -> str:
        """The last words before the answer."""
        return self._prompt.messages[-1].text

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as the data has it."""
        return self._prompt.messages

    async def check_answer(self, text: str) -> float:
        """How many tests the program passes; whatever it does, this is a number."""
        options = self._options
        limits = Limits(wall_s=options.timeout_s, cpu_s=options.timeout_s, memory_bytes=options.memory_mib << 20)
        verdict = await self._sandbox.passes(program_of(text), self._tests, limits)
        return verdict.fraction if options.partial_credit else float(verdict.all_passed)

    def check_format(self, text: str) -> bool:
        """Whether there is a fenced program."""
        return _FENCE.search(text) is not None


class Code(FiniteProblems[tuple[Prompt, Tests]]):
    """The problems of a data set.

    Raises:
        DataError: a data set cannot be used, or a row has no tests.
        SandboxError: this machine cannot confine programs, and ``allow_unsandboxed`` is not set.
    """

    Options = CodeOptions

    def __init__(self, options: CodeOptions, renderer: Renderer, seed: int, store: DatasetStore) -> None:
        """Read the data sets, and find out what the machine offers."""
        prompts, others = options.read(store)
        sandbox = _sandbox(allow_unsandboxed=options.allow_unsandboxed)
        held_out = others if isinstance(others, int) else [(prompt, tests_of(prompt)) for prompt in others]

        def build(item: tuple[Prompt, Tests]) -> Problem:
            prompt, tests = item
            make_env = partial(CodeEnv, prompt, tests, sandbox, options, renderer)
            return Problem(f"code: {prompt.digest}", make_env, ("code",))

        items = [(prompt, tests_of(prompt)) for prompt in prompts]
        super().__init__(items, lambda item: item[0].digest, build, held_out, seed)


@cache
def _sandbox(*, allow_unsandboxed: bool) -> Sandbox:
    """The one sandbox of this process, so that its threads are as many as the processors; closed at the end."""
    made = Sandbox(allow_unsandboxed=allow_unsandboxed)
    atexit.register(made.close)
    return made


def program_of(text: str) -> str:
    """The last fenced program of an answer; the whole answer where none is fenced."""
    fenced = _FENCE.findall(text)
    return fenced[-1] if fenced else text


def tests_of(prompt: Prompt) -> Tests:
    """The tests of a row.

    Raises:
        DataError: it has none, or they cannot be read.
    """
    for column, read in (("tests", _calls), ("exchanges", _exchanges)):
        value = prompt.values.get(column)
        if value is not None:
            try:
                return read(json.loads(value) if isinstance(value, str) else value)
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{prompt.where}: {column} cannot be read: {error!r}") from error
    raise DataError(f"{prompt.where}: the row has neither tests nor exchanges")


def _calls(value: Mapping[str, Any]) -> Calls:
    cases = [Call(case["args"], case["expected"], case.get("kwargs") or {}) for case in value["cases"]]
    if not cases:
        raise ValueError("there are no cases")
    return Calls(value["function"], cases)


def _exchanges(value: Sequence[Mapping[str, Any]]) -> Sequence[Exchange]:
    found = [Exchange(str(one["stdin"]), str(one["stdout"])) for one in value]
    if not found:
        raise ValueError("there are none")
    return found
