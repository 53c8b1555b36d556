"""SFT speed and memory: our engine beside TRL with packing and a plain padded loop over the transformers model.

    python -m benchmarks.sft_speed [--shapes tiny small smollm2] [--training lora full] [--rounds 3]
                                   [--peers PYTHON] [--smollm2 FOLDER] [--sides ours ours_bf16 trl plain]

All sides begin with the same saved weights and train the same examples in every optimizer step, with the same AdamW.
They take turns (ABCABC...), each time in a fresh process. The losses of every step must agree to 1e-4 (relative)
between all float32 sides, or nothing is recorded. The first step of each process is a warm-up. Real tokens are counted,
padding is not. Each pair of shape and training becomes ``results/sft_speed-<shape>-<training>.json``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks import child, peers, record
from benchmarks.sft_workload import PACK_LENGTH, PACKS_A_STEP, SHAPES, Workload, draw_steps

WARM_UP_STEPS = 1
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
_FIELDS = ("tokens_per_second", "tokens_per_cpu_second", "max_rss_mib")


@dataclass(frozen=True)
class Side:
    """One way to train: the module that does it, its options, and the precision its losses are compared in."""

    module: str
    options: Mapping[str, Any]
    precision: str = "float32"
    is_peer: bool = False


class Measurable(Protocol):
    """What all sides are given."""

    @property
    def num_threads(self) -> int:
        """Of every side."""

    def write(self, path: Path) -> None:
        """Write it where a side reads it."""

    def num_tokens(self, first_step: int = 0) -> int:
        """Real tokens of the steps from ``first_step`` on."""


def _trl(rows: int, *, bf16: bool = False, checkpointing: bool = False) -> Side:
    options = {"rows": rows, "bf16": bf16, "checkpointing": checkpointing}
    return Side("benchmarks.sft_side_trl", options, "bfloat16" if bf16 else "float32", is_peer=True)


def _plain(attention: str, batch_size: int = 0) -> Side:
    return Side("benchmarks.sft_side_plain", {"attention": attention, "batch_size": batch_size})


SIDES: Mapping[str, Side] = {
    "ours": Side("benchmarks.sft_side_ours", {"precision": "float32"}),
    "ours_bf16": Side("benchmarks.sft_side_ours", {"precision": "bfloat16"}, "bfloat16"),
    "trl": _trl(rows=1),
    "plain": _plain("sdpa"),
    # other settings of the peers, to see which is best
    "trl_two_packs_a_row": _trl(rows=2),
    "trl_checkpointing": _trl(rows=1, checkpointing=True),
    "trl_bf16": _trl(rows=1, bf16=True),
    "trl_bf16_checkpointing": _trl(rows=1, bf16=True, checkpointing=True),
    "plain_eager": _plain("eager"),
    "plain_batches_of_8": _plain("sdpa", batch_size=8),
    "plain_batches_of_4": _plain("sdpa", batch_size=4),
}
DEFAULT_SIDES = ("ours", "ours_bf16", "trl", "plain")


def main() -> None:
    arguments = _arguments()
    sides = list(SIDES) if arguments.sides == ["all"] else arguments.sides
    pythons = {"ours": Path(sys.executable)}
    if any(SIDES[name].is_peer for name in sides):
        pythons["peers"] = peers.find(arguments.peers)
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory(prefix="sft-speed-") as folder:
            weights = write_weights(shape, arguments.smollm2, Path(folder))
            for training in arguments.training:
                workload = Workload(
                    model=weights["model"],
                    adapter=weights["adapter"] if training == "lora" else None,
                    vocab_size=SHAPES[shape]["vocab_size"],
                    learning_rate=arguments.learning_rate,
                    num_threads=arguments.threads,
                    steps=draw_steps(WARM_UP_STEPS + arguments.steps, SHAPES[shape]["vocab_size"], arguments.seed),
                )
                name = f"sft_speed-{shape}-{training}"
                print(f"\n{name}: {_describe(workload)}", flush=True)
                rounds = measure(
                    workload, {side: SIDES[side] for side in sides}, pythons, arguments.rounds, Path(folder)
                )
                config = _config(arguments, shape, training, workload, sides)
                summary = summarised(rounds, sides)
                print_summary(summary)
                path = record.write(
                    name + arguments.suffix, config=config, rounds=rounds, summary=summary, pythons=pythons
                )
                print(f"written: {path.relative_to(record.ROOT)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--training", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--sides", nargs="+", choices=(*SIDES, "all"), default=list(DEFAULT_SIDES))
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps after the warm-up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0, help="decides the examples")
    parser.add_argument("--peers", type=Path, default=peers.DEFAULT, help="Python with TRL")
    parser.add_argument("--smollm2", type=Path, help="folder with SmolLM2's weights; random ones without it")
    parser.add_argument("--suffix", default="", help="behind the record's name")
    return parser.parse_args()


def write_weights(shape: str, smollm2: Path | None, folder: Path) -> dict[str, str]:
    paths = {"model": str(folder / "model"), "adapter": str(folder / "adapter")}
    command = [sys.executable, "-m", "benchmarks.sft_weights", shape, paths["model"], paths["adapter"]]
    if shape == "smollm2" and smollm2 is not None:
        command.append(str(smollm2))
    done = subprocess.run(
        command, cwd=record.ROOT, env=child.environment(None), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"the weights could not be made:\n{done.stderr[-4000:]}")
    return paths


def measure(
    workload: Measurable, sides: Mapping[str, Side], pythons: Mapping[str, Path], num_rounds: int, folder: Path
) -> list[dict[str, Any]]:
    """All rounds of all sides, in turns, their losses compared."""
    path = folder / "workload.json"
    workload.write(path)
    num_tokens = workload.num_tokens(WARM_UP_STEPS)
    rounds: list[dict[str, Any]] = []
    expected: list[float] | None = None
    for turn in range(num_rounds):
        for name, side in sides.items():
            load = record.load_average()
            python = pythons["peers" if side.is_peer else "ours"]
            found = child.run(python, side.module, path, side.options, workload.num_threads)
            if side.precision == "float32" and expected is None:
                expected = found["losses"]
            difference = _difference(found["losses"], expected) if expected else None
            one = {
                "round": turn,
                "side": name,
                "tokens_per_second": round(num_tokens / sum(found["step_s"][WARM_UP_STEPS:]), 1),
                "tokens_per_cpu_second": round(num_tokens / sum(found["step_cpu_s"][WARM_UP_STEPS:]), 1),
                "loss_difference": difference,
                "load_average_before": load,
                **found,
            }
            rounds.append(one)
            print(
                f"  round {turn + 1}  {name:<24}{one['tokens_per_second']:>8.0f} tok/s"
                f"{one['tokens_per_cpu_second']:>8.0f} tok/CPU-s{one['max_rss_mib'] / 1024:>7.2f} GiB"
                f"   losses {found['losses'][0]:.4f} .. {found['losses'][-1]:.4f}"
                f"   apart {'-' if difference is None else f'{difference:.1e}'}   load {load}",
                flush=True,
            )
            if difference is not None and not difference <= LOSS_TOLERANCE[side.precision]:
                sys.exit(
                    f"{name}: losses are {difference:.1e} apart (relative), which is more than"
                    f" {LOSS_TOLERANCE[side.precision]:.0e}: it does not compute the same\n"
                    f"  expected {expected}\n  found    {found['losses']}"
                )
    return rounds


def _difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference between the losses of a step."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))


def summarised(rounds: Sequence[Mapping[str, Any]], sides: Sequence[str]) -> dict[str, Any]:
    """Medians of each side, and ours over theirs."""
    medians: dict[str, dict[str, Any]] = {}
    for name in sides:
        mine = [one for one in rounds if one["side"] == name]
        apart = [one["loss_difference"] for one in mine if one["loss_difference"] is not None]
        medians[name] = record.medians(mine, _FIELDS) | {"max_loss_difference": max(apart, default=None)}
    return {"medians": medians, "ratios": record.ratios(medians, _FIELDS)}


def print_summary(summary: Mapping[str, Any]) -> None:
    for pair, ratio in summary["ratios"].items():
        print(
            f"  {pair:<36}{ratio['tokens_per_second']:>6.2f}x tok/s"
            f"{ratio['tokens_per_cpu_second']:>6.2f}x tok/CPU-s{ratio['max_rss_mib']:>6.2f}x memory"
        )


def _describe(workload: Workload) -> str:
    num_examples = sum(len(workload.examples(step)) for step in range(len(workload.steps)))
    return (
        f"{len(workload.steps)} steps, {num_examples} examples, {workload.num_tokens()} tokens; a step"
        f" padded to its longest example computes {workload.padding_ratio(0, WARM_UP_STEPS):.2f} times that"
    )


def _config(
    arguments: argparse.Namespace, shape: str, training: str, workload: Workload, sides: Sequence[str]
) -> dict[str, Any]:
    is_real = shape == "smollm2" and arguments.smollm2 is not None
    return {
        "shape": {"name": shape, **SHAPES[shape]},
        "weights": "SmolLM2-135M" if is_real else "random",
        "training": "LoRA r=16, alpha=32, all linear layers" if training == "lora" else "all weights",
        "optimizer": {
            "name": "AdamW (fused)",
            "learning_rate": workload.learning_rate,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
        },
        "num_threads": workload.num_threads,
        "seed": arguments.seed,
        "warm_up_steps": WARM_UP_STEPS,
        "timed_steps": arguments.steps,
        "timed_tokens": workload.num_tokens(WARM_UP_STEPS),
        "examples_a_step": [len(workload.examples(step)) for step in range(len(workload.steps))],
        "pack_length": PACK_LENGTH,
        "packs_a_step": PACKS_A_STEP,
        "padding_ratio_of_plain": {
            name: round(workload.padding_ratio(SIDES[name].options["batch_size"], WARM_UP_STEPS), 3)
            for name in sides
            if "batch_size" in SIDES[name].options
        },
        "loss_tolerance": LOSS_TOLERANCE,
        "sides": {name: {"module": SIDES[name].module, **SIDES[name].options} for name in sides},
    }


if __name__ == "__main__":
    main()
