"""First contact: fine-tune SmolLM2-135M-Instruct on 64 GSM8K rows with defaults, as a new user would.

    python -m benchmarks.first_contact [--rounds 3] [--model NAME] [--peers PYTHON] [field=value ...]

Ours is ``python -m flows.sft dataset=rows.jsonl output_dir=runs``: a temporary Prefect server, rendering, evaluation
before and after with generated answers, training, checkpoints and a report. Its ``cache_dir`` is new in every round,
but for the converted model; the home folder, with the model file and what is known of the processor, is the user's.
With ``--peers``, TRL's command line trains the same rows with the same model folder in turns with ours: LoRA r=16, four
rows a step, float32, all threads, a 12-line configuration; it evaluates nothing.

Measured: wall seconds of the whole command, the highest memory of its process tree (sum of PSS, sampled four times a
second) and of its largest process (``ru_maxrss``), console lines (not a terminal), steps, and real tokens per second of
the training steps. Recorded as ``results/first_contact.json``.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers, record

SAMPLE = record.ROOT / "crucible_train" / "assets" / "gsm8k" / "sample.jsonl.gz"
TRL_CONFIG = """\
model_name_or_path: {model}
datasets:
  - path: json
    data_files: {rows}
output_dir: {output_dir}
use_cpu: true
bf16: false
per_device_train_batch_size: 4
num_train_epochs: 1
use_peft: true
lora_r: 16
logging_steps: 1
report_to: none
"""
_CONVERT = """
import asyncio, json, sys
from crucible_train import wiring
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages.base import resolve
from crucible_train.stages.prepare_model import PrepareModel, locate
model, cache_dir = sys.argv[1:]
config = SFTConfig(model=model) if model else SFTConfig()
source = locate(config.model)
if source.is_dir():
    print(json.dumps([str(source), False]))
else:
    outcome = asyncio.run(resolve(PrepareModel(config, source), {}, cache_dir))
    print(json.dumps([str(wiring.blob_store(cache_dir).fetch(outcome.ref)), True]))
"""
_SAMPLE_EVERY_S = 0.25
_FIELDS = ("wall_s", "peak_tree_pss_mib", "max_rss_mib", "console_lines", "steps", "tokens_per_second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64, help="conversations of the sample")
    parser.add_argument("--model", help="a name, folder or GGUF file; ours by default")
    parser.add_argument(
        "--peers", type=Path, nargs="?", const=peers.DEFAULT, help="Python with TRL, to measure it, too"
    )
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes our configuration; recorded")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the code that ends the command
    pythons = {"ours": Path(sys.executable)}
    if arguments.peers:
        pythons["peers"] = peers.find(arguments.peers)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="first-contact-") as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        write_rows(rows, arguments.rows)
        model, converted = convert_model(arguments.model, folder / "converted")
        for turn in range(arguments.rounds):
            rounds.append(_ours(folder / f"ours-{turn}", rows, converted, arguments.model, arguments.overrides))
            if arguments.peers:
                rounds.append(_trl(folder / f"trl-{turn}", rows, model, arguments.peers))
            for one in rounds[-len(pythons) :]:
                one["round"] = turn
                print(
                    f"  round {turn + 1}  " + "  ".join(f"{key} {one[key]}" for key in ("side", *_FIELDS)), flush=True
                )
    sides = sorted({one["side"] for one in rounds})
    summary = {side: record.medians([one for one in rounds if one["side"] == side], _FIELDS) for side in sides}
    config = {
        "num_rows": arguments.rows,
        "model": arguments.model or "the default",
        "overrides": arguments.overrides,
        "trl_config": TRL_CONFIG if arguments.peers else None,
    }
    path = record.write("first_contact", config=config, rounds=rounds, summary=summary, pythons=pythons)
    print(f"written: {path.relative_to(record.ROOT)}")


def write_rows(path: Path, num_rows: int) -> None:
    """The first rows of the shipped sample, as conversations."""
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as sample, path.open("w", encoding="utf-8") as target:
        for _, line in zip(range(num_rows), sample, strict=False):
            row = json.loads(line)
            messages = [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
            target.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def convert_model(model: str | None, cache_dir: Path) -> tuple[Path, Path | None]:
    """The model as a folder, and the cache that holds nothing but it; None where it needs no converting.

    In a process of its own: the memory of the one that starts a command counts in the command's ``ru_maxrss``.
    """
    command = [sys.executable, "-c", _CONVERT, model or "", cache_dir]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=record.ROOT)
    if done.returncode != 0:
        sys.exit(f"the model could not be prepared:\n{done.stderr[-4000:]}")
    folder, is_converted = json.loads(done.stdout.splitlines()[-1])
    return Path(folder), cache_dir if is_converted else None


def _ours(
    folder: Path, rows: Path, converted: Path | None, model: str | None, overrides: Sequence[str]
) -> dict[str, Any]:
    folder.mkdir()
    cache = folder / "cache"
    if converted is not None:
        shutil.copytree(converted, cache, symlinks=True)
    fields = [f"dataset={rows}", f"output_dir={folder / 'runs'}", f"cache_dir={cache}", *overrides]
    if model:
        fields.append(f"model={model}")
    found = _watch([sys.executable, "-m", "flows.sft", *fields], record.ROOT, {})
    lines = [json.loads(line) for path in folder.glob("runs/*/timings.jsonl") for line in path.open(encoding="utf-8")]
    steps = [line for line in lines if "time/step_s" in line]
    num_tokens = sum(line["perf/tokens_per_second"] * line["time/step_s"] for line in steps)
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("runs/*/eval/summary.json")]
    return {
        "side": "ours",
        **found,
        "steps": len(steps),
        "tokens_per_second": round(num_tokens / sum(line["time/step_s"] for line in steps), 1),
        "eval": [{name: one[name].get("metrics") for name in ("before", "after")} for one in summaries],
    }


def _trl(folder: Path, rows: Path, model: Path, python: Path) -> dict[str, Any]:
    folder.mkdir()
    config = folder / "sft.yaml"
    config.write_text(TRL_CONFIG.format(model=model, rows=rows, output_dir=folder / "out"), encoding="utf-8")
    # its launcher would take one thread of all, and does not say so
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    found = _watch([python.with_name("trl"), "sft", "--config", config], folder, threads | {"PATH": path})
    state = json.loads(next(folder.glob("out/checkpoint-*/trainer_state.json")).read_text(encoding="utf-8"))
    num_tokens = float(state["log_history"][-1]["num_tokens"])
    seconds = [float(number) for number in re.findall(r"'train_runtime': '?([0-9.]+)", found["last_lines"])]
    return {
        "side": "trl",
        **found,
        "steps": state["global_step"],
        "tokens_per_second": round(num_tokens / seconds[-1], 1),
    }


def _watch(command: Sequence[Any], cwd: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command and watch the memory of its processes."""
    load = record.load_average()
    started = time.monotonic()
    with tempfile.TemporaryFile() as console:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **environment}, stdout=console, stderr=subprocess.STDOUT
        )
        samples: list[float] = []
        has_ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, has_ended, samples))
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            has_ended.set()
            sampler.join()
            if process.returncode is None:
                process.terminate()
                process.wait()
        wall_s = time.monotonic() - started
        console.seek(0)
        text = console.read().decode(errors="replace")
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with status {process.returncode}:\n{text[-4000:]}")
    return {
        "wall_s": round(wall_s, 1),
        "peak_tree_pss_mib": round(max(samples, default=0.0), 1),
        "mean_tree_pss_mib": round(statistics.fmean(samples), 1) if samples else 0.0,
        "max_rss_mib": round(usage.ru_maxrss / 1024, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "console_lines": len(text.splitlines()),
        "load_average_before": load,
        "last_lines": text[-2000:],
    }


def _sample(pid: int, has_ended: threading.Event, samples: list[float]) -> None:
    while not has_ended.wait(_SAMPLE_EVERY_S):
        samples.append(sum(_pss_mib(one) for one in _tree(pid)))


def _tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def _pss_mib(pid: int) -> float:
    """The process's share of memory: pages of several processes are divided among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


if __name__ == "__main__":
    main()
