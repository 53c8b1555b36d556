"""How long an episode may take: a clock that stands still where the episode waits for others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Clock:
    """Counts down while it runs.

    Args:
        left_s: seconds that are left, or None for as many as it takes.
    """

    def __init__(self, left_s: float | None) -> None:
        """It does not run yet."""
        self._left_s = left_s
        self._since: float | None = None
        self._limit: asyncio.Timeout | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Timeout]:
        """Run until the block ends, or end it with ``TimeoutError`` where no time is left."""
        try:
            async with asyncio.timeout(None) as self._limit:
                self.go_on()
                yield self._limit
        finally:
            self._count()
            self._limit = None

    def stop(self) -> None:
        """Stand still."""
        self._count()
        if self._limit is not None and self._left_s is not None:
            self._limit.reschedule(None)

    def go_on(self) -> None:
        """Run again."""
        self._since = asyncio.get_running_loop().time()
        if self._limit is not None and self._left_s is not None:
            self._limit.reschedule(self._since + max(0.0, self._left_s))

    def _count(self) -> None:
        if self._since is not None and self._left_s is not None:
            self._left_s -= asyncio.get_running_loop().time() - self._since
        self._since = None
