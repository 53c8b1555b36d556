"""The sandbox: one untrusted Python program, one fresh process and folder, and an answer whatever the program does."""

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from threading import Event
from types import TracebackType
from typing import Any, Self

from crucible_train.errors import ConfigError, DataError, SandboxError
from crucible_train.sandbox.execution import Job, Run, execute
from crucible_train.sandbox.layers import Layers
from crucible_train.sandbox.limits import Limits, Result
from crucible_train.sandbox.probing import Namespaces, working
from crucible_train.sandbox.verdicts import Calls, Exchange, Verdict, calls_verdict, exchanges_verdict, plain_calls


class Sandbox:
    """Runs untrusted Python programs, several at a time. What it guarantees is in ``docs/sandbox.md``."""

    def __init__(
        self,
        *,
        namespaces: Namespaces = "auto",
        allow_unsandboxed: bool = False,
        concurrency: int | None = None,
        import_paths: Sequence[Path] = (),
    ) -> None:
        """Find out by a trial run which layers work on this machine.

        Args:
            namespaces: whether bubblewrap is used: ``"auto"`` where it works, ``"never"``, or ``"always"``: an error
                where it does not.
            allow_unsandboxed: run programs as yourself, with limits but no walls, where no sandbox can be made.
            concurrency: how many programs run at once; the number of processors by default.
            import_paths: folders programs may read and import from beside the standard library.

        Raises:
            SandboxError: this machine cannot confine code, and ``allow_unsandboxed`` is not set.
        """
        missing = [str(path) for path in import_paths if not path.is_dir()]
        if missing:
            raise ConfigError([f"import_paths: {path} is not a folder" for path in missing])
        self.layers: Layers = working(namespaces)
        if not self.layers.confines and not allow_unsandboxed:
            reasons = "; ".join(self.layers.why_not.values())
            raise SandboxError(
                f"untrusted code cannot be confined on this machine: {reasons}. "
                "Run where one of them works, or set allow_unsandboxed=true to run it as yourself, unconfined"
            )
        self._imports = tuple(str(path.resolve()) for path in import_paths)
        self._pool = ThreadPoolExecutor(concurrency or os.cpu_count() or 1, thread_name_prefix="sandbox")

    async def run(
        self,
        program: str,
        *,
        stdin: str | bytes = b"",
        files: Mapping[str, str | bytes] | None = None,
        limits: Limits = Limits(),
    ) -> Result:
        """Run a program as ``__main__`` to its end or to a limit.

        Args:
            program: Python source.
            stdin: what it reads from standard input.
            files: relative path -> content, laid into its folder first; modules there can be imported.
            limits: what it may use.

        Raises:
            SandboxError: the sandbox itself failed. Whatever the program does is a ``Result``.
        """
        laid = {_inside(name): _bytes(content) for name, content in (files or {}).items()}
        return (await self._execute(Job(program, _bytes(stdin), laid), limits)).result

    async def passes(self, solution: str, tests: Calls | Sequence[Exchange], limits: Limits = Limits()) -> Verdict:
        """Which tests a solution passes. What is expected never enters the sandbox.

        All calls of ``Calls`` are made in one process, under one set of limits; each ``Exchange`` is a process of its
        own.

        Raises:
            DataError: an argument or an expected value has no JSON form.
            SandboxError: the sandbox itself failed. Whatever the solution does is a ``Verdict``.
        """
        if isinstance(tests, Calls):
            calls, expected = plain_calls(tests)
            run = await self._execute(Job(solution, function=tests.function, calls=calls), limits)
            return calls_verdict(run, expected)
        jobs = [self._execute(Job(solution, _bytes(test.stdin)), limits) for test in tests]
        return exchanges_verdict([run.result for run in await _all(jobs)], tests)

    async def _execute(self, job: Job, limits: Limits) -> Run:
        """Run in a thread of the pool. A cancelled caller leaves once the program is dead and its folder gone."""
        cancelled = Event()
        submitted = self._pool.submit(execute, self.layers, self._imports, job, limits, cancelled)
        done = asyncio.wrap_future(submitted)
        try:
            await asyncio.wait({done})
        except asyncio.CancelledError:
            cancelled.set()
            if not submitted.cancel():
                await asyncio.wait({done})
                done.exception()  # seen: nobody is left to tell
            raise
        return done.result()

    def close(self) -> None:
        """Wait for the programs that run; none can be started afterwards."""
        self._pool.shutdown()

    def __enter__(self) -> Self:
        """The sandbox itself, closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


async def _all(jobs: Sequence[Coroutine[Any, Any, Run]]) -> list[Run]:
    """Every run, in order; a fault, or a cancelled caller, ends the others first."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _bytes(content: str | bytes) -> bytes:
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content


def _inside(name: str) -> str:
    """A path that stays in the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise DataError(f"a file of a program needs a relative path inside its folder, not {name!r}")
    return str(path)
