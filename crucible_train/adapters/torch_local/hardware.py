"""What this machine is fast at: looked at once, remembered, stated in one line."""

import os
import platform
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from crucible_train import files
from crucible_train.errors import ConfigError
from crucible_train.types import Hardware

_PROBE_SHAPE = (512, 1024, 1024)
_PROBE_REPEATS = 5
# bfloat16 must be clearly faster: a probe near the line would choose differently from run to run.
_WORTHWHILE_SPEEDUP = 1.3

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_dtype(hardware: Hardware) -> torch.dtype:
    """The precision of matrix products as torch names it."""
    return _DTYPES[hardware.precision]


def torch_device(hardware: Hardware) -> torch.device:
    """The device as torch names it."""
    return torch.device(hardware.device)


def resident_bytes() -> int:
    """How much memory this process holds."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()


def usable_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_hardware(device: str, precision: str, num_threads: int, memory: Path) -> Hardware:
    """Resolve ``auto`` and 0: which device, which precision, how many threads.

    A probe of the processor is kept in the folder ``memory``, so that every run on one machine chooses alike.

    Raises:
        ConfigError: a GPU was asked for and there is none.
    """
    cores = usable_cores()
    threads = num_threads or cores
    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device: cuda was asked for, but torch sees no GPU here; use auto or cpu")
    chosen = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    if precision != "auto":
        is_bfloat16, why = precision == "bfloat16", "as asked"
    elif chosen == "cuda":
        is_bfloat16, why = torch.cuda.is_bf16_supported(), torch.cuda.get_device_name()
    else:
        speedup = _bfloat16_speedup(threads, memory)
        is_bfloat16 = speedup >= _WORTHWHILE_SPEEDUP
        why = f"bfloat16 products run {speedup:.1f}x as fast as float32 here"
    place = "GPU" if chosen == "cuda" else f"CPU, {threads} of {cores} cores"
    name = "bfloat16" if is_bfloat16 else "float32"
    return Hardware(
        "cuda" if chosen == "cuda" else "cpu",
        "bfloat16" if is_bfloat16 else "float32",
        threads,
        f"{place}, {name} ({why})",
    )


def _bfloat16_speedup(num_threads: int, memory: Path) -> float:
    """How much faster than float32 a bfloat16 matrix product is, as first measured on this kind of machine."""
    identity = {"cpu": _processor(), "torch": torch.__version__, "threads": num_threads}
    record = memory / f"precision-{files.sha256_json(identity)[:16]}.json"
    known = files.read_json(record)
    if isinstance(known, dict) and isinstance(known.get("speedup"), float):
        return float(known["speedup"])
    # in a thread of its own, which takes its processor threads with it when it ends
    with ThreadPoolExecutor(1) as prober:
        seconds = {dtype: prober.submit(_product_seconds, dtype).result() for dtype in (torch.float32, torch.bfloat16)}
    speedup = round(seconds[torch.float32] / seconds[torch.bfloat16], 2)
    files.write_json(record, {**identity, "speedup": speedup})
    return speedup


def _product_seconds(dtype: torch.dtype) -> float:
    rows, inner, columns = _PROBE_SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    times = []
    for _ in range(_PROBE_REPEATS + 1):
        start = time.perf_counter()
        torch.mm(left, right.t())
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = [line for line in lines if line.startswith(("model name", "flags"))]
    return files.sha256_json(sorted(set(wanted)))
