"""Records of benchmarks: what was measured, on which machine, with which versions, every round and the medians."""

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "datasets", "numpy", "prefect", "trl", "accelerate")
_MEASURED_CODE = ("crucible_train", "flows", "tasks")
_VERSIONS_CODE = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def write(
    name: str,
    *,
    config: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    pythons: Mapping[str, Path],
) -> Path:
    """Write ``results/<name>.json``.

    Args:
        name: of the record.
        config: all that decides what was measured.
        rounds: every single measurement.
        summary: medians and ratios.
        pythons: the interpreters that took part, by the name of their side.
    """
    record = {
        "benchmark": name,
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": {side: versions(python) for side, python in pythons.items()},
        "config": dict(config),
        "summary": dict(summary),
        "rounds": list(rounds),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def hardware() -> dict[str, Any]:
    """The processor, the cores this process may use, and the memory."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = dict(reversed([line.partition(":")[::2] for line in cpuinfo if ":" in line]))
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.machine()),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(meminfo["MemTotal"].split()[0]) / 2**20, 1),
        "bfloat16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
        "platform": platform.platform(),
    }


def commit() -> str:
    """The commit of the measured code, marked where that code has been changed since."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return f"{head}-dirty" if _git("status", "--porcelain", "--", *_MEASURED_CODE) else head


def versions(python: Path) -> dict[str, str]:
    """The versions of the libraries that an interpreter sees."""
    done = subprocess.run(
        [python, "-c", _VERSIONS_CODE, *LIBRARIES], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def load_average() -> float:
    """Processes that wanted to run in the last minute: above the number of cores, times say little."""
    return round(os.getloadavg()[0], 2)


def medians(rounds: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> dict[str, float]:
    """The median of each field over the rounds."""
    return {field: round(statistics.median(one[field] for one in rounds), 4) for field in fields}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def ratios(medians: Mapping[str, Mapping[str, float]], fields: Sequence[str]) -> dict[str, dict[str, float]]:
    """Ours over theirs, by ``own / other``: sides of ours have names that begin so."""
    return {
        f"{own} / {other}": {name: round(medians[own][name] / medians[other][name], 3) for name in fields}
        for own in medians
        if own.startswith("ours")
        for other in medians
        if not other.startswith("ours")
    }
