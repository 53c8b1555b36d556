"""How full the GPUs are."""

from collections.abc import Mapping

import torch

_GIB = 1 << 30


def gpu_load() -> Mapping[str, float]:
    """Memory of the GPU that trains, in GiB, as its driver tells it.

    ``system/gpu_memory_gib`` is what every process on it holds, ``system/gpu_reserved_gib`` what this one's allocator
    does. Nothing where CUDA is not in use: asking would claim the device.
    """
    if not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "system/gpu_memory_gib": (total - free) / _GIB,
        "system/gpu_reserved_gib": torch.cuda.memory_reserved() / _GIB,
        **_busy(),
    }


def _busy() -> Mapping[str, float]:
    """``system/gpu_percent``, 0 to 100, where the driver's library for Python is installed and tells it."""
    try:
        return {"system/gpu_percent": float(torch.cuda.utilization())}
    except Exception:  # noqa: BLE001 - no nvidia-ml-py, or a slice of a GPU: its library's errors derive from Exception
        return {}
