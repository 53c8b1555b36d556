"""Speed and memory of on-policy distillation: ours beside TRL's DistillationTrainer, which succeeds its GKDTrainer.

    python -m benchmarks.distill_speed [--shapes tiny small] [--rounds 3] [--sides ours ours_bf16 ...]
                                       [--peers PYTHON]

All sides begin with the same saved student and teacher, of one shape and other random weights, and answer the same
prompts with as many samples, temperature 1, no filter, the same limit and the same stop tokens. The loss is the exact
reverse KL over the whole vocabulary; all weights are trained by AdamW. Sides take turns (ABAB...), each time in a fresh
process whose first step is not counted. The first step's loss, over answers sampled by the same student, must agree to
a few per cent, or nothing is recorded. Each shape becomes ``results/distill_speed-<shape>.json``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import child, peers, record
from benchmarks.distill_workload import Distillation
from benchmarks.rollout_workload import draw_prompts, draw_stops
from benchmarks.sft_workload import SHAPES

SIDES: Mapping[str, Mapping[str, Any]] = {
    "ours": {"module": "ours", "precision": "float32"},
    "ours_bf16": {"module": "ours", "precision": "bfloat16"},
    "trl": {"module": "trl", "batch_size": 8, "bf16": False, "checkpointing": False},
    # other settings of the peer, to see which is best
    "trl_16": {"module": "trl", "batch_size": 16, "bf16": False, "checkpointing": False},
    "trl_bf16": {"module": "trl", "batch_size": 8, "bf16": True, "checkpointing": False},
    "trl_default": {"module": "trl", "batch_size": 8, "bf16": True, "checkpointing": True},
}
DEFAULT_SIDES = ("ours", "ours_bf16", "trl")
NUM_PROMPTS, GROUP_SIZE, MEAN_PROMPT, STOP_SHARE = 4, 4, 96, 0.03
_AGREEMENT = 0.15
_FIELDS = ("steps_per_minute", "steps_per_cpu_minute", "tokens_per_cpu_second", "max_rss_mib")


def main() -> None:
    arguments = _arguments()
    pythons = {"ours": Path(sys.executable), "trl": peers.find(arguments.peers)}
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory(prefix="distill-speed-") as folder:
            workload = _workload(shape, arguments, Path(folder))
            path = Path(folder) / "workload.json"
            workload.write(path)
            print(f"\ndistill_speed-{shape}", flush=True)
            rounds = _measure(path, arguments, workload.num_threads, pythons)
        summary = _summary(rounds, arguments.sides)
        for pair, ratio in summary["ratios"].items():
            print(f"  {pair:<28}" + "".join(f"{ratio[name]:>7.2f}x {name}" for name in _FIELDS))
        config = {
            "model": {"name": shape, **SHAPES[shape]},
            "num_steps": arguments.steps,
            "num_prompts": NUM_PROMPTS,
            "group_size": GROUP_SIZE,
            "mean_prompt": MEAN_PROMPT,
            "max_tokens": arguments.max_tokens,
            "stop_share": STOP_SHARE,
            "seed": arguments.seed,
            "num_threads": workload.num_threads,
            "sides": {name: dict(SIDES[name]) for name in arguments.sides},
        }
        name = f"distill_speed-{shape}{arguments.suffix}"
        written = record.write(name, config=config, rounds=rounds, summary=summary, pythons=pythons)
        print(f"written: {written.relative_to(record.ROOT)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["tiny", "small"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(DEFAULT_SIDES))
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--steps", type=int, default=4, help="steps that are counted")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")
    parser.add_argument("--max_tokens", type=int, default=64, help="limit of an answer")
    parser.add_argument("--seed", type=int, default=0, help="decides the prompts and the stop tokens")
    parser.add_argument("--peers", type=Path, default=peers.DEFAULT, help="Python with TRL")
    parser.add_argument("--suffix", default="", help="behind the record's name")
    return parser.parse_args()


def _workload(shape: str, arguments: argparse.Namespace, folder: Path) -> Distillation:
    for seed, name in enumerate(("student", "teacher")):
        command = [sys.executable, "-m", "benchmarks.sft_weights", shape, str(folder / name), str(folder / "adapter")]
        done = subprocess.run([*command, "", str(seed)], cwd=record.ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"the weights could not be made:\n{done.stderr[-4000:]}")
    vocab = SHAPES[shape]["vocab_size"]
    prompts = draw_prompts((arguments.steps + 1) * NUM_PROMPTS, MEAN_PROMPT, vocab, arguments.seed)
    return Distillation(
        student=str(folder / "student"),
        teacher=str(folder / "teacher"),
        num_threads=arguments.threads,
        steps=[prompts[start : start + NUM_PROMPTS] for start in range(0, len(prompts), NUM_PROMPTS)],
        group_size=GROUP_SIZE,
        max_tokens=arguments.max_tokens,
        stop_token_ids=draw_stops(STOP_SHARE, vocab, arguments.seed),
        learning_rate=1e-5,
    )


def _measure(
    path: Path, arguments: argparse.Namespace, num_threads: int, pythons: Mapping[str, Path]
) -> list[dict[str, Any]]:
    rounds: list[dict[str, Any]] = []
    for turn in range(arguments.rounds):
        for name in arguments.sides:
            load = record.load_average()
            found = _measured(path, SIDES[name], num_threads, pythons)
            steps = found["num_steps"]
            one = {
                "round": turn,
                "side": name,
                "steps_per_minute": round(60 * steps / found["seconds"], 2),
                "steps_per_cpu_minute": round(60 * steps / found["cpu_seconds"], 2),
                "tokens_per_cpu_second": round(found["num_tokens"] / found["cpu_seconds"], 1),
                "load_average_before": load,
                **found,
            }
            rounds.append(one)
            print(
                f"  round {turn + 1}  {name:<12}{one['steps_per_minute']:>8.2f} steps/min"
                f"{one['steps_per_cpu_minute']:>8.2f} steps/CPU-min{one['max_rss_mib'] / 1024:>7.2f} GiB"
                f"{one['num_tokens']:>7} tokens   first loss {one['first_loss']:.4f}   load {load}",
                flush=True,
            )
            expected = rounds[0]["first_loss"]
            if abs(one["first_loss"] - expected) > _AGREEMENT * expected:
                sys.exit(f"{name}: its first loss is {one['first_loss']}, that of {rounds[0]['side']} {expected}")
    return rounds


def _measured(workload: Path, of: Mapping[str, Any], num_threads: int, pythons: Mapping[str, Path]) -> dict[str, Any]:
    options = {name: value for name, value in of.items() if name != "module"}
    module = of["module"]
    return child.run(pythons[module], f"benchmarks.distill_side_{module}", workload, options, num_threads)


def _summary(rounds: Sequence[Mapping[str, Any]], sides: Sequence[str]) -> dict[str, Any]:
    """Medians of each side, and ours over theirs."""
    medians = {name: record.medians([one for one in rounds if one["side"] == name], _FIELDS) for name in sides}
    return {"medians": medians, "ratios": record.ratios(medians, _FIELDS)}


if __name__ == "__main__":
    main()
