"""How busy the machine is while a run trains: processor, memory, GPU."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import psutil

_GIB = 1 << 30
_INTERVAL_S = 0.5
Load = Mapping[str, float]


class MachineLoad:
    """The newest sample of the machine's load, taken on a thread of its own.

    Asking never waits: it returns the sample that is there and, where that is older than half a second, has the next
    one taken meanwhile. Walking the processes takes some milliseconds on a busy machine, which no step is to pay.
    """

    def __init__(self, gpu: Callable[[], Load] = dict, report: Callable[[str], None] = lambda _: None) -> None:
        """Take the first sample.

        Args:
            gpu: gives what is to be told of the GPU besides.
            report: is told, in a line and once, that it does not.
        """
        self._gpu, self._report, self._is_reported = gpu, report, False
        self._process = psutil.Process()
        self._thread = ThreadPoolExecutor(1, "machine-load")
        psutil.cpu_percent()  # counts from here: what it says first is of no interval
        self._asked_at = time.monotonic()
        self._newest = self._sample(with_cpu=False)
        self._taking: Future[Load] | None = None

    def newest(self) -> Load:
        """The newest sample.

        ``system/cpu_percent`` is of all cores of the machine, 0 to 100, since the sample before; ``system/memory_gib``
        is what this process and its children hold, in GiB. The first sample has no ``system/cpu_percent``.
        """
        if self._taking is not None and self._taking.done():
            self._newest, self._taking = self._taking.result(), None
        now = time.monotonic()
        if self._taking is None and now - self._asked_at >= _INTERVAL_S:
            self._asked_at = now
            self._taking = self._thread.submit(self._sample)
        return self._newest

    def _sample(self, *, with_cpu: bool = True) -> Load:
        try:
            load = {"system/memory_gib": self._memory() / _GIB}
            if with_cpu:
                load["system/cpu_percent"] = psutil.cpu_percent()
        except (psutil.Error, OSError):  # a machine that does not tell is no reason to stop a run
            return {}
        return {**load, **self._gpu_load()}

    def _gpu_load(self) -> Load:
        try:
            return self._gpu()
        except Exception as error:  # noqa: BLE001 - a driver may raise anything, and no step is to end by it
            if not self._is_reported:
                self._is_reported = True
                self._report(f"the load of the GPU is not told: {type(error).__name__}: {error}")
            return {}

    def _memory(self) -> int:
        """Resident bytes of this process and of its children, as far as those still live."""
        total: int = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total
