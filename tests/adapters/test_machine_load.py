"""What is told of the machine: without waiting, and with the children."""

import subprocess
import sys
import threading
import time

import psutil
import pytest

from crucible_train import wiring
from crucible_train.adapters import machine_load
from crucible_train.adapters.machine_load import MachineLoad
from crucible_train.adapters.torch_local import gpu_load


def until(load: MachineLoad, name: str) -> float:
    """The first value of a name."""
    end = time.monotonic() + 30
    while name not in load.newest():
        assert time.monotonic() < end
        time.sleep(0.05)
    return load.newest()[name]


def test_a_sample_is_there_from_the_start_and_the_processor_follows() -> None:
    load = MachineLoad()
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]  # servers of other tests are children too
    assert load.newest()["system/memory_gib"] == pytest.approx(sum(p.memory_info().rss for p in tree) / 2**30, rel=0.5)
    assert 0 <= until(load, "system/cpu_percent") <= 100


def test_memory_of_children_counts() -> None:
    program = "x = bytearray(300 << 20); print('full', flush=True); input()"
    alone = MachineLoad().newest()["system/memory_gib"]
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert MachineLoad().newest()["system/memory_gib"] > alone + 0.25
        child.communicate(b"\n")


def test_asking_does_not_wait_for_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, is_slow = threading.Event(), False

    def gpu() -> dict[str, float]:
        if is_slow:
            hangs.wait(60)
        return {"system/gpu_memory_gib": 1.0}

    monkeypatch.setattr(machine_load, "_INTERVAL_S", 0.0)
    load = MachineLoad(gpu)
    first, is_slow = load.newest(), True
    try:
        assert [load.newest()["system/gpu_memory_gib"] for _ in range(3)] == [1.0] * 3
        assert first["system/gpu_memory_gib"] == 1.0
    finally:
        hangs.set()


def test_a_machine_that_does_not_tell_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise psutil.AccessDenied

    load = MachineLoad()
    monkeypatch.setattr(psutil, "cpu_percent", refuse)
    assert load._sample() == {}


def test_a_driver_that_refuses_stops_nothing_and_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As NVML does for a slice of a GPU: its errors derive from Exception alone."""

    class NVMLError(Exception):
        pass

    def gpu() -> dict[str, float]:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(machine_load, "_INTERVAL_S", 0.0)
    said: list[str] = []
    load = MachineLoad(gpu, said.append)
    until(load, "system/cpu_percent")
    assert set(load.newest()) == {"system/cpu_percent", "system/memory_gib"}
    assert said == ["the load of the GPU is not told: NVMLError: Not Supported"]


def test_a_gpu_that_does_not_tell_how_busy_it_is_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def utilization() -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(gpu_load.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(gpu_load.torch.cuda, "mem_get_info", lambda: (1 << 30, 4 << 30))
    monkeypatch.setattr(gpu_load.torch.cuda, "memory_reserved", lambda: 2 << 30)
    monkeypatch.setattr(gpu_load.torch.cuda, "utilization", utilization)
    assert gpu_load.gpu_load() == {"system/gpu_memory_gib": 3.0, "system/gpu_reserved_gib": 2.0}


def test_without_cuda_nothing_is_told_of_a_gpu() -> None:
    assert not [name for name in wiring.machine_load(pytest.fail)() if "gpu" in name]
