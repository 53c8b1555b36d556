"""DPO speed and memory: our engine beside TRL's DPOTrainer, the reference precomputed on both sides.

    python -m benchmarks.dpo_speed [--shapes tiny small smollm2] [--training lora full] [--rounds 3]
                                   [--peers PYTHON] [--smollm2 FOLDER] [--sides ours ours_bf16 trl ...]

All sides begin with the same saved weights and train the same pairs in every optimizer step, with the same AdamW. They
take turns (ABCABC...), each time in a fresh process. The losses of every step must agree to 1e-4 (relative) between all
float32 sides, or nothing is recorded. The first step of each process is a warm-up. Tokens are those of both sequences
of a pair, prompts counted twice, padding not. Each pair of shape and training becomes
``results/dpo_speed-<shape>-<training>.json``.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import peers, record
from benchmarks.dpo_workload import BETA, COMPLETION, PAIRS_A_STEP, PROMPT, Workload, draw_steps
from benchmarks.sft_speed import LOSS_TOLERANCE, WARM_UP_STEPS, Side, measure, print_summary, summarised, write_weights
from benchmarks.sft_workload import SHAPES


def _trl(pairs: int, *, bf16: bool = False, checkpointing: bool = False) -> Side:
    options = {"pairs": pairs, "bf16": bf16, "checkpointing": checkpointing}
    return Side("benchmarks.dpo_side_trl", options, "bfloat16" if bf16 else "float32", is_peer=True)


SIDES: Mapping[str, Side] = {
    "ours": Side("benchmarks.dpo_side_ours", {"precision": "float32"}),
    "ours_bf16": Side("benchmarks.dpo_side_ours", {"precision": "bfloat16"}, "bfloat16"),
    "trl": _trl(pairs=2),
    # other settings of TRL, to see which is best
    "trl_one_pair": _trl(pairs=1),
    "trl_whole_step": _trl(pairs=PAIRS_A_STEP),
    "trl_bf16": _trl(pairs=2, bf16=True),
    "trl_checkpointing": _trl(pairs=2, checkpointing=True),
}
DEFAULT_SIDES = ("ours", "ours_bf16", "trl", "trl_one_pair", "trl_whole_step", "trl_bf16")


def main() -> None:
    arguments = _arguments()
    sides = {name: SIDES[name] for name in (SIDES if arguments.sides == ["all"] else arguments.sides)}
    pythons = {"ours": Path(sys.executable)}
    if any(side.is_peer for side in sides.values()):
        pythons["peers"] = peers.find(arguments.peers)
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory(prefix="dpo-speed-") as folder:
            weights = write_weights(shape, arguments.smollm2, Path(folder))
            for training in arguments.training:
                workload = Workload(
                    model=weights["model"],
                    adapter=weights["adapter"] if training == "lora" else None,
                    learning_rate=arguments.learning_rate,
                    num_threads=arguments.threads,
                    steps=draw_steps(WARM_UP_STEPS + arguments.steps, SHAPES[shape]["vocab_size"], arguments.seed),
                )
                name = f"dpo_speed-{shape}-{training}"
                print(f"\n{name}: {len(workload.steps)} steps of {PAIRS_A_STEP} pairs, {workload.num_tokens()} tokens")
                rounds = measure(workload, sides, pythons, arguments.rounds, Path(folder))
                summary = summarised(rounds, list(sides))
                print_summary(summary)
                config = {
                    "shape": {"name": shape, **SHAPES[shape]},
                    "weights": "SmolLM2-135M" if shape == "smollm2" and arguments.smollm2 else "random",
                    "training": "LoRA r=16, alpha=32, all linear layers" if training == "lora" else "all weights",
                    "loss": {"loss_type": "sigmoid", "beta": BETA},
                    "learning_rate": workload.learning_rate,
                    "num_threads": workload.num_threads,
                    "seed": arguments.seed,
                    "warm_up_steps": WARM_UP_STEPS,
                    "timed_steps": arguments.steps,
                    "pairs_a_step": PAIRS_A_STEP,
                    "log_lengths": {"prompt": PROMPT, "completion": COMPLETION},
                    "loss_tolerance": LOSS_TOLERANCE,
                    "sides": {name: {"module": side.module, **side.options} for name, side in sides.items()},
                }
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
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps after the warm-up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0, help="decides the pairs")
    parser.add_argument("--peers", type=Path, default=peers.DEFAULT, help="Python with TRL")
    parser.add_argument("--smollm2", type=Path, help="folder with SmolLM2's weights; random ones without it")
    parser.add_argument("--suffix", default="", help="behind the record's name")
    return parser.parse_args()


if __name__ == "__main__":
    main()
