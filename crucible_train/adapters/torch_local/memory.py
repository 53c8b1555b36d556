"""What the C library does with freed memory (glibc; elsewhere these do nothing)."""

import ctypes
import gc
import sys

_M_ARENA_MAX = -8


def give_back_memory() -> None:
    """Free what only cycles hold, and hand free pages back to the system (glibc keeps them otherwise)."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def share_one_heap() -> None:
    """Let all threads allocate from the main heap (glibc only).

    glibc gives other threads heaps of 64 MiB that it hands back and fetches again all the time; large tensors then
    cost page faults on every step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)
