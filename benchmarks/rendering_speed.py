"""Rendering with weights: conversations per second beside transformers, tinker-cookbook and ``renderers``.

    python -m benchmarks.rendering_speed [--rounds 3] [--num 2000] [--peers PYTHON] [--renderers_peers PYTHON]

Workloads: ``questions`` are GSM8K rows, a question and its answer, in Qwen3's format; ``chats`` are conversations of
three such turns behind a system message, in the Instruct-2507 format. All sides render the same conversations with the
same tokenizer in a process of their own, in turns, after a warm-up; the ids must be the same, up to a last
newline, or nothing is recorded.
``transformers`` gets its weights as TRL does, from a template with the output marked (its mask has one newline more a
turn), a conversation a call; ``transformers_in_batches`` hands it 512 at once, which it encodes on all cores. ``ours``
is ``build_many``, which the data path uses; ``ours_one_by_one`` calls ``build_supervised_example`` for each
conversation. The other two have no call for many. The rows are 200, so their words come again and again, more than in
a set of as many rows; all sides remember words. Seconds of the processors stand beside those of the clock.

The environment of ``--renderers_peers`` is made by

    python3.11 -m venv .venv-renderers
    .venv-renderers/bin/pip install torch==2.13.0 transformers==5.5.4
    .venv-renderers/bin/pip install tinker-cookbook==0.5.8 tinker==0.38.0 renderers==0.1.12
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import peers, record

SAMPLE = record.ROOT / "crucible_train" / "assets" / "gsm8k" / "sample.jsonl.gz"
TOKENIZER = record.ROOT / "tests" / "golden" / "tokenizers" / "qwen3"
RENDERERS_PEERS = record.ROOT / ".venv-renderers" / "bin" / "python"
SYSTEM = "You are a patient teacher of mathematics. Work step by step and close with the result after four hashes."
_SIDES = {
    "questions": (
        *("ours", "ours_one_by_one", "transformers", "transformers_in_batches"),
        *("tinker_cookbook", "renderers"),
    ),
    "chats": ("ours", "ours_one_by_one", "transformers", "transformers_in_batches", "tinker_cookbook"),
}
_RENDERER = {"questions": "qwen3", "chats": "qwen3_instruct"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num", type=int, default=2000, help="conversations of each workload")
    parser.add_argument("--peers", type=Path, default=peers.DEFAULT, help="Python with TRL")
    parser.add_argument("--renderers_peers", type=Path, default=RENDERERS_PEERS)
    arguments = parser.parse_args()
    ours, trl = Path(sys.executable), peers.find(arguments.peers)
    if not arguments.renderers_peers.is_file():
        sys.exit(f"{arguments.renderers_peers}: no Python there; `--help` says how to make it")
    pythons = {
        "ours": ours,
        "ours_one_by_one": ours,
        "transformers": trl,
        "transformers_in_batches": trl,
        "tinker_cookbook": arguments.renderers_peers,
        "renderers": arguments.renderers_peers,
    }
    rounds: list[dict[str, Any]] = []
    for turn in range(arguments.rounds):
        for workload, sides in _SIDES.items():
            given = list(conversations(workload, arguments.num))
            found = []
            for side in sides:
                task = {
                    "side": side,
                    "renderer": _RENDERER[workload],
                    "tokenizer": str(TOKENIZER),
                    "newline_id": 198,
                    "conversations": given,
                }
                one = _run(pythons[side], task) | {"workload": workload, "side": side, "round": turn}
                one["conversations_per_s"] = round(arguments.num / one["wall_s"], 1)
                one["conversations_per_cpu_s"] = round(arguments.num / one["cpu_s"], 1)
                found.append(one)
                print(
                    f"  round {turn + 1}  {workload:10} {side:16} {one['conversations_per_s']:10,.0f} /s "
                    f"{one['num_tokens'] / one['wall_s']:12,.0f} tokens/s   {one['cpu_s']:.2f} CPU-s",
                    flush=True,
                )
            if len({one["ids"] for one in found}) > 1:
                sys.exit(f"{workload}: the sides disagree on the ids: {[(one['side'], one['ids']) for one in found]}")
            rounds += found
    summary = _summary(rounds)
    for workload, ratios in summary.items():
        print(f"  {workload:10} " + "  ".join(f"{name} {ratio}" for name, ratio in ratios.items()))
    config = {"num_conversations": arguments.num, "workloads": _SIDES, "renderers": _RENDERER}
    path = record.write("rendering_speed", config=config, rounds=rounds, summary=summary, pythons=pythons)
    print(f"written: {path.relative_to(record.ROOT)}")


def conversations(workload: str, num: int) -> Iterator[dict[str, Any]]:
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as sample:
        rows = [json.loads(line) for line in sample]
    turns = 1 if workload == "questions" else 3
    for number in range(num):
        messages = [] if workload == "questions" else [{"role": "system", "content": SYSTEM}]
        for turn in range(turns):
            row = rows[(number * turns + turn) % len(rows)]
            # a number of its own, so that no conversation is another one again
            messages.append({"role": "user", "content": f"Question {number}.{turn}: {row['question']}"})
            messages.append({"role": "assistant", "content": row["answer"]})
        yield {"messages": messages, "tools": None}


def _run(python: Path, task: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [python, Path(__file__).with_name("rendering_side.py")],
        input=json.dumps(task),
        env={**os.environ, "PYTHONPATH": str(record.ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{task['side']} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _summary(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The median speed of each side, by the clock and by the processors, and how many times another's ours is."""
    summary: dict[str, dict[str, float]] = {}
    for workload, sides in _SIDES.items():
        summary[workload] = {}
        for measure, unit in (("conversations_per_s", ""), ("conversations_per_cpu_s", " (CPU)")):
            speed = {
                side: statistics.median(
                    one[measure] for one in rounds if (one["workload"], one["side"]) == (workload, side)
                )
                for side in sides
            }
            summary[workload] |= {f"{side}{unit}": value for side, value in speed.items()}
            summary[workload] |= {
                f"ours / {side}{unit}": round(speed["ours"] / value, 2)
                for side, value in speed.items()
                if side != "ours"
            }
    return summary


if __name__ == "__main__":
    main()
