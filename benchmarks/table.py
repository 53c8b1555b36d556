"""Prints the records as Markdown tables, for a README.

python -m benchmarks.table
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.record import RESULTS

_FIRST_CONTACT = (
    ("wall clock, s", "wall_s", "{:.0f}"),
    ("peak memory of all processes (PSS), GiB", "peak_tree_pss_mib", "gib"),
    ("peak memory of the largest process (RSS), GiB", "max_rss_mib", "gib"),
    ("console lines", "console_lines", "{:.0f}"),
    ("optimizer steps", "steps", "{:.0f}"),
    ("tokens/s while training", "tokens_per_second", "{:.0f}"),
)
_NUM_NAME_DASHES = 2
_ROLLOUTS = ("rollout_speed-tiny", "rollout_speed-small", "rollout_speed-smollm2")
_SHOWN_LIBRARIES = ("torch", "transformers", "trl")
_SIDE_NAMES = {"ours": "CrucibleTrain", "trl": "TRL"}


def main() -> None:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    by_name = {one["benchmark"]: one for one in records}
    # records with a suffix (settings tried out, trials) are no rows of the table
    speed = [one for one in records if "shape" in one["config"] and one["benchmark"].count("-") == _NUM_NAME_DASHES]
    for part in (
        _speed(speed),
        _rollouts([one for one in records if one["benchmark"] in _ROLLOUTS]),
        _grpo([one for one in records if "workload" in one["config"] and "-settings" not in one["benchmark"]]),
        _first_contact(by_name.get("first_contact")),
        _loss_head(by_name.get("loss_head_memory")),
        _origin(records),
    ):
        if part:
            print("\n".join(part) + "\n")


def _speed(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each shape and training: the medians, and ours in float32 over the best of TRL and over the loop."""
    rows = []
    for one in sorted(records, key=lambda one: (one["config"]["shape"]["hidden_size"], one["config"]["training"])):
        medians = one["summary"]["medians"]
        trl = {name: found for name, found in medians.items() if name.startswith("trl")}
        plain = {name: found for name, found in medians.items() if name.startswith("plain")}
        if "ours" not in medians or not trl or not plain:
            continue
        ours, bf16 = medians["ours"], medians.get("ours_bf16")
        trl_speed, trl_memory = _best(trl.values())
        plain_speed, _ = _best(plain.values())
        rows.append(
            [
                f"{one['config']['shape']['name']}, {one['config']['training'].partition(',')[0]}",
                f"{ours['tokens_per_second']:.0f}",
                f"{bf16['tokens_per_second']:.0f}" if bf16 else "",
                f"{trl_speed:.0f}",
                f"{plain_speed:.0f}",
                f"{ours['tokens_per_second'] / trl_speed:.1f}x",
                f"{ours['tokens_per_second'] / plain_speed:.1f}x",
                f"{ours['max_rss_mib'] / 1024:.2f}",
                f"{trl_memory / 1024:.2f}",
                f"{ours['max_rss_mib'] / trl_memory:.2f}x",
            ]
        )
    head = ["SFT, real tokens/s", "ours", "ours, bfloat16", "TRL", "plain loop", "over TRL", "over plain loop"]
    return _table([*head, "peak GiB", "TRL's", "of TRL's"], rows)


def _rollouts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each model: tokens a second of a processor core, ours in float32 over the best setting of each peer."""
    rows = []
    for one in sorted(records, key=lambda one: one["config"]["model"]["hidden_size"]):
        medians = one["summary"]["medians"]
        speeds = {name: found["tokens_per_cpu_second"] for name, found in medians.items()}
        generate = max(speed for name, speed in speeds.items() if name.startswith("generate"))
        continuous = max(speed for name, speed in speeds.items() if name.startswith("continuous"))
        least = min(found["max_rss_mib"] for name, found in medians.items() if not name.startswith("ours"))
        ours = speeds["ours"]
        rows.append(
            [
                f"{one['config']['model']['name']}, {one['config']['weights']} weights",
                *(f"{speed:.0f}" for speed in (ours, speeds["ours_bf16"], generate, continuous)),
                f"{ours / generate:.1f}x",
                f"{ours / continuous:.1f}x",
                f"{medians['ours']['max_rss_mib'] / 1024:.2f}",
                f"{least / 1024:.2f}",
            ]
        )
    head = ["sampling, tokens/CPU-s", "ours", "ours, bfloat16", "generate", "continuous batching", "over generate"]
    return _table([*head, "over continuous batching", "peak GiB", "least of theirs"], rows)


def _grpo(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each workload: the medians, and ours in float32 over the best of TRL."""
    rows = []
    for one in records:
        medians = one["summary"]["medians"]
        trl = [found for name, found in medians.items() if name.startswith("trl")]
        if "ours" not in medians or not trl:
            continue
        ours, bf16 = medians["ours"], medians.get("ours_bf16")
        speed, memory = max(found["tokens_per_cpu_second"] for found in trl), min(found["max_rss_mib"] for found in trl)
        by_clock = max(found["tokens_per_second"] for found in trl)
        rows.append(
            [
                one["config"]["workload"],
                f"{ours['tokens_per_cpu_second']:.0f}",
                f"{bf16['tokens_per_cpu_second']:.0f}" if bf16 else "",
                f"{speed:.0f}",
                f"{ours['tokens_per_cpu_second'] / speed:.1f}x",
                f"{ours['tokens_per_second'] / by_clock:.1f}x",
                f"{ours['max_rss_mib'] / memory:.2f}x",
            ]
        )
    head = ["RL step, sampled tokens per CPU-second", "ours", "ours, bfloat16", "TRL", "over TRL"]
    return _table([*head, "by the clock", "memory, of TRL's"], rows)


def _best(sides: Iterable[Mapping[str, float]]) -> tuple[float, float]:
    """The highest speed and the lowest memory, be they of one setting or two."""
    found = list(sides)
    return max(one["tokens_per_second"] for one in found), min(one["max_rss_mib"] for one in found)


def _first_contact(record: Mapping[str, Any] | None) -> list[str]:
    if record is None:
        return []
    sides = record["summary"]
    rows = [[label, *(_shown(side[field], form) for side in sides.values())] for label, field, form in _FIRST_CONTACT]
    title = f"{record['config']['num_rows']} GSM8K rows, SmolLM2-135M, defaults"
    return _table([title, *(_SIDE_NAMES[name] for name in sides)], rows)


def _loss_head(record: Mapping[str, Any] | None) -> list[str]:
    if record is None:
        return []
    rows = []
    for vocabulary in record["config"]["vocabularies"]:
        cases = [one for one in record["rounds"] if one["vocabulary"] == vocabulary]
        highest = max(one["extra_mib"] for one in cases)
        rows.append([f"{vocabulary:,}", f"{highest:.0f}", f"{cases[0]['logits_mib']:.0f}"])
    return _table(["loss head: vocabulary", "peak extra MiB", "all logits would be, MiB"], rows)


def _origin(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where and when, one line for all that were measured alike."""
    lines: dict[str, list[str]] = {}
    for one in records:
        versions = one["versions"].get("peers", one["versions"]["ours"])
        libraries = ", ".join(f"{name} {versions[name]}" for name in _SHOWN_LIBRARIES if name in versions)
        machine = f"{one['hardware']['num_cores']} cores of {one['hardware']['cpu']}"
        line = f"{machine}; {libraries}; commit {one['commit']}; {one['measured_at'][:10]}"
        lines.setdefault(line, []).append(one["benchmark"])
    return [f"{', '.join(names)}: {line}" for line, names in lines.items()]


def _shown(value: float, form: str) -> str:
    return f"{value / 1024:.2f}" if form == "gib" else form.format(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)]


if __name__ == "__main__":
    main()
