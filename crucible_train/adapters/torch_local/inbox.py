"""Where callers in the event loop leave requests for the engine's thread."""

import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Requests that are served as one: while they are, more may come, until it is closed.

    A call that may change the weights closes it, so that what was asked before the call is answered before it, and
    what is asked after the call waits in the next one.
    """

    def __init__(self) -> None:
        """Empty and open."""
        self._lock = threading.Lock()
        self._items: list[T] = []
        self._is_closed = False
        self.is_served = False

    def put(self, items: Sequence[T]) -> bool:
        """Leave requests; False where it is closed, and nothing was left."""
        with self._lock:
            if not self._is_closed:
                self._items += items
            return not self._is_closed

    def take(self) -> list[T]:
        """All that was left since the last time."""
        with self._lock:
            items, self._items = self._items, []
            return items

    def close(self) -> None:
        """Take no more."""
        with self._lock:
            self._is_closed = True

    def close_if_empty(self) -> bool:
        """Close it if nothing waits in it; whether it was closed here."""
        with self._lock:
            self._is_closed = self._is_closed or not self._items
            return not self._items

    def __bool__(self) -> bool:
        """Whether something waits."""
        with self._lock:
            return bool(self._items)
