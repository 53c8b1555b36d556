"""Rollout speed and memory: our sampler beside transformers' ``generate`` and its continuous batching.

    python -m benchmarks.rollout_speed [--shapes tiny small smollm2] [--rounds 3] [--sides ours ours_bf16 ...]
                                       [--smollm2 FOLDER]

All sides load the same saved weights and answer the same prompts: groups of 8 samples, temperature 1, no filter, the
same limit and the same stop tokens, which make lengths vary. They take turns (ABCABC...), each time in a fresh process
with a warm-up. Tokens are counted up to the stop token, padding is not. The answers that every float32 side writes
greedily to the first prompts must be equal, or nothing is recorded. Each shape becomes
``results/rollout_speed-<shape>.json``.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import child, record
from benchmarks.rollout_workload import GROUP_SIZE, Rollouts, draw_prompts, draw_stops
from benchmarks.sft_workload import SHAPES

# The peers in the best settings found (``--sides all`` tries the others as well).
SIDES: Mapping[str, Mapping[str, Any]] = {
    "ours": {"kind": "ours"},
    "ours_bf16": {"kind": "ours", "precision": "bfloat16"},
    "generate": {"kind": "generate"},
    "generate_static": {"kind": "generate", "cache": "static"},
    # its own choice of a cache size, for a GPU, makes it five times slower on a processor
    "continuous": {"kind": "continuous", "page_size": 32, "num_blocks": 1024, "max_batch_tokens": 1024},
    # other settings of the peers, to see which is best
    "generate_eager": {"kind": "generate", "attention": "eager"},
    "generate_4_prompts": {"kind": "generate", "batch_size": 4},
    "continuous_eager": {"kind": "continuous", "attention": "eager"},
    "continuous_default": {"kind": "continuous"},
    "continuous_fewer_blocks": {"kind": "continuous", "page_size": 32, "num_blocks": 512, "max_batch_tokens": 1024},
    "continuous_small_batch": {"kind": "continuous", "page_size": 32, "num_blocks": 1024, "max_batch_tokens": 256},
}
DEFAULT_SIDES = ("ours", "ours_bf16", "generate", "generate_static", "continuous")
PROMPTS = {"tiny": 16, "small": 16, "smollm2": 8}
MEAN_PROMPT, STOP_SHARE = 128, 0.03
_FIELDS = ("tokens_per_second", "tokens_per_cpu_second", "max_rss_mib")
_QUESTIONS = record.ROOT / "crucible_train" / "assets" / "gsm8k" / "sample.jsonl.gz"


def main() -> None:
    arguments = _arguments()
    sides = list(SIDES) if arguments.sides == ["all"] else arguments.sides
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory(prefix="rollout-speed-") as folder:
            workload = _workload(shape, arguments, Path(folder))
            path = Path(folder) / "workload.json"
            workload.write(path)
            lengths = [len(prompt) for prompt in workload.prompts]
            print(
                f"\nrollout_speed-{shape}: {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens",
                flush=True,
            )
            rounds = _measure(path, sides, arguments.rounds, workload.num_threads)
            summary = _summary(rounds, sides)
            _print_summary(summary)
            written = record.write(
                f"rollout_speed-{shape}{arguments.suffix}",
                config=_config(shape, arguments, workload, sides),
                rounds=rounds,
                summary=summary,
                pythons={"ours": Path(sys.executable)},
            )
            print(f"written: {written.relative_to(record.ROOT)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sides", nargs="+", choices=(*SIDES, "all"), default=list(DEFAULT_SIDES))
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")
    parser.add_argument("--max_tokens", type=int, default=96, help="limit of an answer")
    parser.add_argument("--seed", type=int, default=0, help="decides the prompts and the stop tokens")
    parser.add_argument("--smollm2", type=Path, help="folder with SmolLM2's weights; random ones without it")
    parser.add_argument("--suffix", default="", help="behind the record's name")
    return parser.parse_args()


def _workload(shape: str, arguments: argparse.Namespace, folder: Path) -> Rollouts:
    model = str(folder / "model")
    is_real = shape == "smollm2" and arguments.smollm2 is not None
    command = [sys.executable, "-m", "benchmarks.sft_weights", shape, model, str(folder / "adapter")]
    command += [str(arguments.smollm2)] if is_real else []
    done = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"the weights could not be made:\n{done.stderr[-4000:]}")
    vocab = SHAPES[shape]["vocab_size"]
    if is_real:
        prompts, stops = _questions(PROMPTS[shape])
    else:
        prompts = draw_prompts(PROMPTS[shape], MEAN_PROMPT, vocab, arguments.seed)
        stops = draw_stops(STOP_SHARE, vocab, arguments.seed)
    return Rollouts(
        model=model,
        num_threads=arguments.threads,
        prompts=prompts,
        group_size=GROUP_SIZE,
        max_tokens=arguments.max_tokens,
        stop_token_ids=stops,
        greedy_tokens=min(32, arguments.max_tokens),
        num_greedy=min(4, len(prompts)),
    )


def _questions(num: int) -> tuple[list[list[int]], list[int]]:
    """Questions as SmolLM2 is asked them, and the tokens with a full stop, which end a sentence."""
    from crucible_train.renderers import FastTokenizer, get_renderer
    from crucible_train.types import Message

    tokenizer = FastTokenizer.from_folder(record.ROOT / "crucible_train" / "assets" / "smollm2")
    renderer = get_renderer("smollm2", tokenizer)
    with gzip.open(_QUESTIONS, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, num)]
    prompts = [renderer.build_generation_prompt([Message("user", row["question"])]).to_ints() for row in rows]
    stops = {stop for stop in renderer.stop_sequences() if isinstance(stop, int)}
    stops |= {token for token in range(SHAPES["smollm2"]["vocab_size"]) if "." in tokenizer.decode([token])}
    return prompts, sorted(stops)


def _measure(path: Path, sides: Sequence[str], num_rounds: int, num_threads: int) -> list[dict[str, Any]]:
    rounds: list[dict[str, Any]] = []
    expected: list[list[int]] | None = None
    for turn in range(num_rounds):
        for name in sides:
            load = record.load_average()
            found = child.run(sys.executable, "benchmarks.rollout_side", path, SIDES[name], num_threads)
            greedy = found.pop("greedy")
            is_float32 = SIDES[name].get("precision", "float32") == "float32"
            if is_float32 and expected is None:
                expected = greedy
            one = {
                "round": turn,
                "side": name,
                "tokens_per_second": round(found["num_tokens"] / found["seconds"], 1),
                "tokens_per_cpu_second": round(found["num_tokens"] / found["cpu_seconds"], 1),
                "greedy_equal": greedy == expected,
                "load_average_before": load,
                **found,
            }
            rounds.append(one)
            print(
                f"  round {turn + 1}  {name:<24}{one['tokens_per_second']:>8.1f} tok/s"
                f"{one['tokens_per_cpu_second']:>8.1f} tok/CPU-s{one['max_rss_mib'] / 1024:>7.2f} GiB"
                f"{one['num_tokens']:>7} tokens   greedy {'equal' if one['greedy_equal'] else 'differs'}   load {load}",
                flush=True,
            )
            if is_float32 and greedy != expected:
                sys.exit(f"{name}: the greedy answers differ\n  expected {expected}\n  found    {greedy}")
    return rounds


def _summary(rounds: Sequence[Mapping[str, Any]], sides: Sequence[str]) -> dict[str, Any]:
    """Medians of each side, and ours over theirs."""
    medians = {name: record.medians([one for one in rounds if one["side"] == name], _FIELDS) for name in sides}
    return {"medians": medians, "ratios": record.ratios(medians, _FIELDS)}


def _print_summary(summary: Mapping[str, Any]) -> None:
    for pair, ratio in summary["ratios"].items():
        print(
            f"  {pair:<36}{ratio['tokens_per_second']:>6.2f}x tok/s"
            f"{ratio['tokens_per_cpu_second']:>6.2f}x tok/CPU-s{ratio['max_rss_mib']:>6.2f}x memory"
        )


def _config(shape: str, arguments: argparse.Namespace, workload: Rollouts, sides: Sequence[str]) -> dict[str, Any]:
    is_real = shape == "smollm2" and arguments.smollm2 is not None
    return {
        "model": {"name": shape, **SHAPES[shape]},
        "weights": "SmolLM2-135M-Instruct" if is_real else "random",
        "num_threads": workload.num_threads,
        "seed": arguments.seed,
        "prompt_lengths": [len(prompt) for prompt in workload.prompts],
        "group_size": workload.group_size,
        "max_tokens": workload.max_tokens,
        "temperature": 1.0,
        "num_stop_tokens": len(workload.stop_token_ids),
        "greedy_compared": [workload.num_greedy, workload.greedy_tokens],
        "sides": {name: dict(SIDES[name]) for name in sides},
    }


if __name__ == "__main__":
    main()
