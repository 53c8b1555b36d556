"""Speed and memory of a whole RL step, rollout and update: our recipe beside TRL's GRPOTrainer.

    python -m benchmarks.grpo_speed [--workloads tiny tiny_long small smollm2] [--rounds 3] [--sides ours ours_bf16 trl]
                                    [--smollm2 FOLDER] [--peers PYTHON]

All sides begin with the same saved weights and play the same prompts in the same steps, 8 answers each at temperature
1, with the same reward, advantages over the group's deviation, a loss that is a mean over the step's tokens, and the
same AdamW. Answers end by an end token that the weights give the same probability. Sides take turns (ABCABC...), each
time in a fresh process, with another seed every round; the first step of each is a warm-up. Sampled tokens are counted
up to the end token. After the first float32 run of TRL our recipe is given TRL's answers in place of its own: loss and
gradient norm of every step must agree to 1e-3 (relative), or nothing is recorded. Each workload becomes
``results/grpo_speed-<workload>.json``.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import child, peers, record
from benchmarks.grpo_workload import GROUP_SIZE, Workload
from benchmarks.rollout_workload import draw_prompts
from benchmarks.sft_workload import SHAPES

WARM_UP_STEPS = 1
TOLERANCE = 1e-3
END_SHARE = 0.03
_FIELDS = ("tokens_per_second", "tokens_per_cpu_second", "sampling_share_of_cpu", "max_rss_mib")
_QUESTIONS = record.ROOT / "crucible_train" / "assets" / "gsm8k" / "sample.jsonl.gz"
_CHECKED = ("loss", "grad_norm")


@dataclass(frozen=True)
class Kind:
    """What is played: the model's shape, prompts of a step, their mean length (0: questions), and the limit."""

    shape: str
    groups: int
    mean_prompt: int
    max_tokens: int


WORKLOADS: Mapping[str, Kind] = {
    "tiny": Kind("tiny", 2, 128, 96),
    "tiny_long": Kind("tiny", 2, 380, 32),
    "small": Kind("small", 2, 128, 96),
    "smollm2": Kind("smollm2", 2, 0, 48),
}
OURS: Mapping[str, str] = {"ours": "float32", "ours_bf16": "bfloat16"}
# TRL in the best settings found, and others (``--sides all``).
TRL: Mapping[str, Mapping[str, Any]] = {
    "trl": {},
    "trl_batches_of_8": {"batch": 8},
    "trl_defaults": {"bf16": True, "checkpointing": True},
    "trl_bf16": {"bf16": True},
    "trl_static_cache": {"cache": "static"},
    "trl_continuous": {"continuous": {}},
    "trl_continuous_blocks": {"continuous": {"page_size": 32, "num_blocks": 1024, "max_batch_tokens": 1024}},
}
DEFAULT_SIDES = (*OURS, "trl")


def main() -> None:
    arguments = _arguments()
    sides = [*OURS, *TRL] if arguments.sides == ["all"] else arguments.sides
    pythons = {"ours": Path(sys.executable)}
    if any(name in TRL for name in sides):
        pythons["peers"] = peers.find(arguments.peers)
    for name in arguments.workloads:
        with tempfile.TemporaryDirectory(prefix="grpo-speed-") as folder:
            workload = _workload(WORKLOADS[name], arguments, Path(folder))
            print(f"\ngrpo_speed-{name}: prompts of {sorted(map(len, workload.prompts))} tokens", flush=True)
            rounds: list[dict[str, Any]] = []
            apart: dict[str, Any] | None = None
            for turn in range(arguments.rounds):  # a record after each: what is stopped leaves whole rounds
                more, found = _measure(replace(workload, seed=turn), sides, pythons, Path(folder), check=apart is None)
                rounds, apart = [*rounds, *more], apart or found
                summary = {"num_rounds": turn + 1, "apart": apart, **_summary(rounds, sides)}
                written = record.write(
                    f"grpo_speed-{name}{arguments.suffix}",
                    config=_config(name, arguments, workload, sides),
                    rounds=rounds,
                    summary=summary,
                    pythons=pythons,
                )
                _print_summary(summary)
                print(f"written: {written.relative_to(record.ROOT)}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["tiny", "tiny_long"])
    parser.add_argument("--sides", nargs="+", choices=(*OURS, *TRL, "all"), default=list(DEFAULT_SIDES))
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps after the warm-up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0, help="decides the prompts")
    parser.add_argument("--peers", type=Path, default=peers.DEFAULT, help="Python with TRL")
    parser.add_argument("--smollm2", type=Path, help="folder with SmolLM2's weights, which that workload needs")
    parser.add_argument("--suffix", default="", help="behind the record's name")
    return parser.parse_args()


def _workload(kind: Kind, arguments: argparse.Namespace, folder: Path) -> Workload:
    num = kind.groups * (WARM_UP_STEPS + arguments.steps)
    if kind.mean_prompt:
        model = str(folder / "model")
        command = [sys.executable, "-m", "benchmarks.grpo_weights", kind.shape, model, str(END_SHARE)]
        done = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"the weights could not be made:\n{done.stderr[-4000:]}")
        prompts = draw_prompts(num, kind.mean_prompt, SHAPES[kind.shape]["vocab_size"], arguments.seed)
    else:
        if arguments.smollm2 is None:
            sys.exit("the workload smollm2 needs --smollm2 FOLDER")
        model, prompts = str(arguments.smollm2.resolve()), _questions(num)
    return Workload(
        model=model,
        num_threads=arguments.threads,
        steps=[prompts[start : start + kind.groups] for start in range(0, num, kind.groups)],
        group_size=GROUP_SIZE,
        max_tokens=kind.max_tokens,
        learning_rate=arguments.learning_rate,
    )


def _questions(num: int) -> list[list[int]]:
    """Questions as SmolLM2 is asked them."""
    from crucible_train.renderers import FastTokenizer, get_renderer
    from crucible_train.types import Message

    tokenizer = FastTokenizer.from_folder(record.ROOT / "crucible_train" / "assets" / "smollm2")
    renderer = get_renderer("smollm2", tokenizer)
    with gzip.open(_QUESTIONS, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, num)]
    return [renderer.build_generation_prompt([Message("user", row["question"])]).to_ints() for row in rows]


def _measure(
    workload: Workload, sides: Sequence[str], pythons: Mapping[str, Path], folder: Path, *, check: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """One turn of every side, and how far ours and TRL's updates are apart on the same answers."""
    rounds: list[dict[str, Any]] = []
    apart: dict[str, Any] | None = None
    path = folder / "workload.json"
    workload.write(path)
    for name in sides:
        load = record.load_average()
        answers = {"answers": str(folder / "answers.json")}
        if name in OURS:
            found = child.run(
                pythons["ours"], "benchmarks.grpo_side_ours", path, {"precision": OURS[name]}, workload.num_threads
            )
        else:
            found = child.run(
                pythons["peers"], "benchmarks.grpo_side_trl", path, {**TRL[name], **answers}, workload.num_threads
            )
        one = {"round": workload.seed, "side": name, **_rates(found["steps"][WARM_UP_STEPS:])}
        one |= {"load_average_before": load, **found}
        rounds.append(one)
        print(
            f"  round {workload.seed + 1}  {name:<22}{one['tokens_per_second']:>8.1f} tok/s"
            f"{one['tokens_per_cpu_second']:>8.1f} tok/CPU-s{one['max_rss_mib'] / 1024:>7.2f} GiB"
            f"   sampling {one['sampling_share_of_cpu']:.0%}   {one['num_tokens']:.0f} tokens   load {load}",
            flush=True,
        )
        if name in TRL and not TRL[name].get("bf16") and check and apart is None:
            again = child.run(
                pythons["ours"],
                "benchmarks.grpo_side_ours",
                path,
                {"precision": "float32", **answers},
                workload.num_threads,
            )
            apart = _apart(name, found["steps"], again["steps"])
    return rounds, apart


def _rates(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the timed steps come to."""
    total = {name: sum(step[name] for step in steps) for name in ("num_tokens", "s", "cpu_s", "sampling_cpu_s")}
    return {
        "num_tokens": total["num_tokens"],
        "tokens_per_second": round(total["num_tokens"] / total["s"], 1),
        "tokens_per_cpu_second": round(total["num_tokens"] / total["cpu_s"], 1),
        "sampling_share_of_cpu": round(total["sampling_cpu_s"] / total["cpu_s"], 3),
    }


def _apart(name: str, theirs: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """How far losses and norms of the gradient are apart, step by step."""
    pairs = list(zip(theirs, ours, strict=True))
    worst = {
        field: max(abs(mine[field] - other[field]) / abs(other[field]) for other, mine in pairs) for field in _CHECKED
    }
    told = {field: {"theirs": [a[field] for a, _ in pairs], "ours": [b[field] for _, b in pairs]} for field in _CHECKED}
    print(
        "  the same answers: " + ", ".join(f"{field} {value:.1e} apart" for field, value in worst.items()), flush=True
    )
    if not max(worst.values()) <= TOLERANCE:
        sys.exit(f"{name} and ours are more than {TOLERANCE:.0e} apart on the same answers: {told}")
    return {"side": name, "max_relative_difference": worst, **told}


def _summary(rounds: Sequence[Mapping[str, Any]], sides: Sequence[str]) -> dict[str, Any]:
    """Medians of each side, and ours over theirs."""
    medians = {name: record.medians([one for one in rounds if one["side"] == name], _FIELDS) for name in sides}
    compared = ("tokens_per_second", "tokens_per_cpu_second", "max_rss_mib")
    return {"medians": medians, "ratios": record.ratios(medians, compared)}


def _print_summary(summary: Mapping[str, Any]) -> None:
    for pair, ratio in summary["ratios"].items():
        print(
            f"  {pair:<36}{ratio['tokens_per_second']:>6.2f}x tok/s"
            f"{ratio['tokens_per_cpu_second']:>6.2f}x tok/CPU-s{ratio['max_rss_mib']:>6.2f}x memory"
        )


def _config(name: str, arguments: argparse.Namespace, workload: Workload, sides: Sequence[str]) -> dict[str, Any]:
    kind = WORKLOADS[name]
    return {
        "workload": name,
        "model": {"name": kind.shape, **SHAPES[kind.shape]},
        "weights": f"random, end token {END_SHARE:.0%}" if kind.mean_prompt else "SmolLM2-135M-Instruct",
        "training": "all weights",
        "num_threads": workload.num_threads,
        "seed": arguments.seed,
        "warm_up_steps": WARM_UP_STEPS,
        "timed_steps": arguments.steps,
        "groups_a_step": workload.groups_a_step,
        "group_size": workload.group_size,
        "prompt_lengths": [len(prompt) for prompt in workload.prompts],
        "max_tokens": workload.max_tokens,
        "temperature": 1.0,
        "learning_rate": workload.learning_rate,
        "tolerance": TOLERANCE,
        "sides": {one: {"precision": OURS[one]} if one in OURS else dict(TRL[one]) for one in sides},
    }


if __name__ == "__main__":
    main()
