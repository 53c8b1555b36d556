"""Ctrl-C and TERM as a request: the work in hand is cancelled, it saves, and the flow run ends as Cancelled.

Prefect installs a TERM handler of its own round a flow, which raises in the middle of whatever runs; this one replaces
it inside the flow's body only, and leaves the decision to Prefect where a worker owns the run.
"""

import asyncio
import contextlib
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, ParamSpec, TypeVar

from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment
from prefect.states import Cancelled, Failed

from crucible_train.errors import CrucibleError, Interrupted

P = ParamSpec("P")
T = TypeVar("T")
_ONE_PRESS_S = 1.0


class StopRequest:
    """Who asked to stop, if anybody: ``signal_number`` is 0 until then."""

    def __init__(self) -> None:
        """Nobody has asked."""
        self.signal_number = 0
        self._work: asyncio.Future[Any] | None = None

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await the coroutine; where a stop is asked for, cancel it.

        Raises:
            Interrupted: it was cancelled so, and has saved.
        """
        self._work = asyncio.ensure_future(coroutine)
        try:
            return await self._work
        except asyncio.CancelledError:
            if not self.signal_number:
                self._work.cancel()
                raise
            raise Interrupted(self.signal_number) from None

    @contextlib.contextmanager
    def listening(self, *numbers: int) -> Iterator[None]:
        """Take these signals as requests. A second press, a second later, ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in numbers}
        first = math.inf

        def heard(number: int, _frame: object) -> None:
            nonlocal first
            if time.monotonic() > first + _ONE_PRESS_S:
                os._exit(128 + number)
            first = min(first, time.monotonic())
            loop.call_soon_threadsafe(self._ask, number)

        for number in numbers:
            signal.signal(number, heard)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int) -> None:
        if not self.signal_number:
            self.signal_number = number
            if self._work is not None:
                self._work.cancel()


def stoppable(body: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Awaitable[T]]:
    """A flow's body that ends as Cancelled when somebody asks it to stop, and as Failed with our own errors' words.

    Raised, an error would be pickled by Prefect and have its words put before ours.
    """

    @functools.wraps(body)
    async def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        request = StopRequest()
        is_deployed = deployment.id is not None
        # In a worker's process TERM is Prefect's: replacing its handler makes a cancelled run end as Crashed.
        numbers = (signal.SIGINT,) if is_deployed else (signal.SIGINT, signal.SIGTERM)
        with request.listening(*numbers):
            try:
                return await request.run(body(*args, **kwargs))
            except Interrupted as stop:
                if is_deployed:  # cancelled, rescheduled or crashed is the worker's to say
                    raise TerminationSignal(signal.SIGTERM) from stop
                return Cancelled(message="stopped; what was done is saved", data=stop)
            except CrucibleError as error:
                return Failed(message=str(error), data=error)

    return run
