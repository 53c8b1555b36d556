"""Rendering a data set with one process and with several: conversations on disk to tokens and weights on disk.

    python -m benchmarks.rendering_workers [--rounds 3] [--num 200000] [--workers 1 2]

The conversations are those of ``rendering_speed``'s workload ``questions``. Every run is ``data.rendering.render``, all
included: loading the tokenizer, starting workers, rendering, counting, writing Arrow. Numbers of workers take turns.
Beside the seconds of the clock stand those of the processors, of the command itself and of its workers: on a machine
that does other things, only they say what the work costs. All outputs must be the same, to the byte.
"""

import argparse
import hashlib
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.rendering_speed import TOKENIZER, conversations
from crucible_train.config.sections import DataConfig
from crucible_train.data.conversations import Dialogue
from crucible_train.data.preparation import CONVERSATIONS
from crucible_train.data.render_rows import RendererSpec
from crucible_train.data.rendering import TRAIN, VALIDATION, render
from crucible_train.data.tables import StoredDialogue, write_dialogues
from crucible_train.types import conversation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num", type=int, default=200_000, help="conversations")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = (
            StoredDialogue.of(Dialogue(conversation(given["messages"])), str(number))
            for number, given in enumerate(conversations("questions", arguments.num))
        )
        write_dialogues(folder / CONVERSATIONS, stored)
        for turn in range(arguments.rounds):
            for num_workers in arguments.workers:
                found = _run(folder, num_workers) | {"round": turn, "num_workers": num_workers}
                found["conversations_per_s"] = round(arguments.num / found["wall_s"], 1)
                rounds.append(found)
                print(
                    f"  round {turn + 1}  {num_workers} processes {found['conversations_per_s']:10,.0f} /s   "
                    f"{found['own_cpu_s']:.1f} + {found['workers_cpu_s']:.1f} CPU-s",
                    flush=True,
                )
    if len({one["files"] for one in rounds}) > 1:
        sys.exit("the outputs differ")
    summary = {
        str(num): {
            key: statistics.median(one[key] for one in rounds if one["num_workers"] == num)
            for key in ("conversations_per_s", "own_cpu_s", "workers_cpu_s")
        }
        for num in arguments.workers
    }
    config = {"num_conversations": arguments.num, "renderer": "qwen3"}
    path = record.write(
        "rendering_workers", config=config, rounds=rounds, summary=summary, pythons={"ours": Path(sys.executable)}
    )
    print(f"written: {path.relative_to(record.ROOT)}")


def _run(folder: Path, num_workers: int) -> dict[str, Any]:
    spec = RendererSpec("qwen3", {}, TOKENIZER)
    with tempfile.TemporaryDirectory() as name:
        own, workers, started = *_cpu_s(), time.perf_counter()
        render(folder, spec, DataConfig(num_workers=num_workers, eval_split=0.05), 0, Path(name))
        wall_s = time.perf_counter() - started
        own_after, workers_after = _cpu_s()
        digests = [hashlib.sha256((Path(name) / file).read_bytes()).hexdigest()[:16] for file in (TRAIN, VALIDATION)]
    return {
        "wall_s": round(wall_s, 3),
        "own_cpu_s": round(own_after - own, 3),
        "workers_cpu_s": round(workers_after - workers, 3),
        "files": " ".join(digests),
    }


def _cpu_s() -> tuple[float, float]:
    """The processor seconds of this process and of those it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, others = (one.ru_utime + one.ru_stime for one in used)
    return own, others


if __name__ == "__main__":
    main()
