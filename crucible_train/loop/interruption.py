"""Being asked to stop: by Ctrl-C, by a polite kill, by an orchestrator."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Interruption:
    """A request to stop, and the loop that is to hear it.

    ``request`` cancels the loop in its current wait; the loop saves what the last finished step left and raises
    ``Interrupted``.
    """

    def __init__(self) -> None:
        """Nobody has asked yet, and nobody listens."""
        self.signal_number: int | None = None
        self._listener: asyncio.Task[object] | None = None

    def request(self, signal_number: int) -> bool:
        """Ask the listening loop to stop; whether there was one. A second request changes nothing."""
        is_first = self.signal_number is None
        self.signal_number = self.signal_number or signal_number
        if self._listener is None:
            return False
        if is_first:
            self._listener.cancel()
        return True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the current task be the one that is cancelled."""
        self._listener = asyncio.current_task()
        try:
            yield
        finally:
            self._listener = None
