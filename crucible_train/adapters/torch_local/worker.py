"""A thread that works through what it is given, in order, and never keeps a process alive."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """One daemon thread and its queue. Unlike an executor's, it is not waited for when the interpreter ends."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._is_closed = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Queue a call; its future.

        Raises:
            RuntimeError: the thread was told to end, so the call would never be made.
        """
        if self._is_closed:
            raise RuntimeError(f"{self._thread.name} is closed")
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future gets it
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def close(self) -> None:
        """Finish what is queued, then end."""
        self._is_closed = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
