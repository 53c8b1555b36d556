"""The README's commands and examples are real."""

import json
import pkgutil
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from crucible_train.config.base import Section
from crucible_train.config.command import parse_command
from flows.command import PROGRAMS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.partition("#")[0].strip() for line in README.splitlines() if line.startswith("python -m flows.")]


def config_type(flow: str) -> type[Section]:
    found: type[Section] = pkgutil.resolve_name(PROGRAMS[flow].config_type)
    return found


def test_the_first_command_stands_in_the_first_fifteen_lines() -> None:
    assert any(line.startswith("make sft") for line in README.splitlines()[:15])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text((ROOT / "examples" / "sft.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    module, *words = shlex.split(command)[2:]
    parse_command(config_type(module.removeprefix("flows.")), words, f"python -m {module}")


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5


def test_the_makefile_has_what_the_readme_and_ci_call() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = set(re.findall(r"make ([\w-]+)", README + (ROOT / ".ci" / "run").read_text(encoding="utf-8")))
    assert called <= targets


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_configurations(path: Path) -> None:
    """An example bears the name of its flow."""
    assert parse_command(config_type(path.stem), ["--config", str(path)], "x").action == "run"


def test_deployments_name_the_flow_and_parameters_it_takes() -> None:
    deployments = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    for deployment in deployments:
        file, _, name = deployment["entrypoint"].partition(":")
        assert f"async def {name}(" in (ROOT / file).read_text(encoding="utf-8")
        config_type(name).model_validate(deployment["parameters"]["config"])


def test_every_speed_in_the_readme_has_a_record() -> None:
    records = {path.name for path in RESULTS.glob("*.json")}
    named = set(re.findall(r"`benchmarks/results/([\w.-]+\.json)`", README))
    assert named
    assert named <= records
    assert "`results/" not in README


def test_the_table_of_speeds_is_what_the_records_say() -> None:
    lines = README[README.index("| SFT, real tokens/s |") :].partition("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    medians = {}
    for name in re.findall(r"`benchmarks/results/(sft_speed-[\w.-]+\.json)`", README):
        found = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        shape, training = found["config"]["shape"]["name"], found["config"]["training"].partition(" ")[0]
        shown = {"smollm2": "SmolLM2-135M"}.get(shape, shape)
        medians[f"{shown}, {'LoRA' if training == 'LoRA' else 'all weights'}"] = found["summary"]["medians"]
    assert {row[0] for row in rows} == set(medians)
    for name, *cells in rows:
        sides = medians[name]
        speeds = [f"{sides[side]['tokens_per_second']:.0f}" for side in ("ours", "ours_bf16", "trl", "plain")]
        memory = f"{sides['ours']['max_rss_mib'] / sides['trl']['max_rss_mib']:.2f}x"
        assert dict(zip(head[1:], cells, strict=True)) == dict(zip(head[1:], [*speeds, memory], strict=True)), name


def test_the_table_of_rl_steps_is_what_the_records_say() -> None:
    lines = README[README.index("| RL step, sampled tokens per CPU-second |") :].partition("\n\n")[0].splitlines()
    _, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    expected = []
    titles = {"tiny": "tiny, short prompts", "tiny_long": "tiny, long prompts", "smollm2": "SmolLM2-135M"}
    for name in re.findall(r"`benchmarks/results/(grpo_speed-[\w.]+\.json)`", README):
        found = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        ours, bf16, trl = (found["summary"]["medians"][side] for side in ("ours", "ours_bf16", "trl"))
        speeds = [side["tokens_per_cpu_second"] for side in (ours, bf16, trl)]
        by_clock = ours["tokens_per_second"] / trl["tokens_per_second"]
        memory = ours["max_rss_mib"] / trl["max_rss_mib"]
        ratios = [f"{speeds[0] / speeds[2]:.1f}x", f"{by_clock:.1f}x", f"{memory:.2f}x"]
        expected.append([titles[found["config"]["workload"]], *(f"{speed:.0f}" for speed in speeds), *ratios])
    assert rows == expected


@pytest.mark.parametrize(
    ("name", "field", "peer", "told"),
    [
        ("dpo_speed-tiny-lora", "tokens_per_second", "trl_one_pair", r"(\d+) tokens/s in float32 against (\d+) of"),
        ("dpo_speed-small-lora", "tokens_per_second", "trl_one_pair", r"(\d+) against (\d+) on the small\s+shape"),
        ("dpo_speed-tiny-full", "tokens_per_second", "trl_one_pair", r"two rounds: (\d+) against (\d+)"),
        ("distill_speed-tiny", "steps_per_minute", "trl", r"([\d.]+) steps a minute in float32 against ([\d.]+) of"),
    ],
)
def test_preferences_and_distillation_are_what_their_records_say(name: str, field: str, peer: str, told: str) -> None:
    medians = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["summary"]["medians"]
    ours, theirs = medians["ours"], medians[peer]
    assert theirs[field] == max(side[field] for key, side in medians.items() if not key.startswith("ours"))
    ratio = r".*?([\d.]+)x, (?:with )?([\d.]+)x its memory; `benchmarks/results/"
    found = re.search(told + ratio + name, README, re.DOTALL)
    digits = 0 if field == "tokens_per_second" else 1
    speeds = [f"{side[field]:.{digits}f}" for side in (ours, theirs)]
    ratios = [f"{ours[field] / theirs[field]:.1f}", f"{ours['max_rss_mib'] / theirs['max_rss_mib']:.2f}"]
    assert found is not None
    assert [*found.groups()] == [*speeds, *ratios]


def test_what_a_tracker_costs_is_what_its_record_says() -> None:
    costs = json.loads((RESULTS / "tracking_overhead.json").read_text(encoding="utf-8"))["summary"]["cost"]
    medians = {side: round(100 * cost["median"], 1) + 0.0 for side, cost in costs.items()}
    none = medians.pop("none")
    text = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    told = re.search(r"took ([\d.]+) to\s+([\d.]+)% longer.*?over (\w+) ways.*?and ([\d.]+)% where", text, re.DOTALL)
    assert told is not None
    extremes = (f"{min(medians.values()):.1f}", f"{max(medians.values()):.1f}")
    assert told.groups() == (*extremes, {6: "six"}[len(medians)], f"{none:.1f}")


def test_the_first_contact_is_what_its_record_says() -> None:
    found = json.loads((RESULTS / "first_contact.json").read_text(encoding="utf-8"))
    ours = found["summary"]["ours"]
    told = re.search(r"(\d+) rows of GSM8K as the whole first command.*?: (\d+) s and ([\d.]+) GiB", README, re.S)
    expected = (f"{found['config']['num_rows']}", f"{ours['wall_s']:.0f}", f"{ours['max_rss_mib'] / 1024:.2f}")
    assert told.groups() == expected


def test_the_installation_says_what_it_is_about_to_do(tmp_path: Path) -> None:
    told = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", f"VENV={tmp_path}/new", "sft", "ARGS=seed=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert told[0] == f'echo "installing into {tmp_path}/new: about 3 GB, one or two minutes"'
    assert told[-1] == f"{tmp_path}/new/bin/python -m flows.sft seed=1"


def test_the_environment_is_activated_before_the_first_command_that_needs_it() -> None:
    lines = README.splitlines()
    assert lines.index("source .venv/bin/activate") < lines.index(next(x for x in lines if x.startswith("python -m ")))


def test_the_table_of_renderings_is_what_its_record_says() -> None:
    summary = json.loads((RESULTS / "rendering_speed.json").read_text())["summary"]
    rows = {"question and answer, Qwen3": "questions", "three turns, Instruct-2507": "chats"}
    sides = (
        "ours",
        "ours_one_by_one",
        "transformers",
        "transformers_in_batches",
        "tinker_cookbook",
        "renderers",
    )
    for title, workload in rows.items():
        found = {side: summary[workload].get(f"{side} (CPU)") for side in sides}
        told = ["" if found[side] is None else f"{found[side]:.0f}" for side in sides]
        assert f"| {title} | {' | '.join(told)} |".replace("|  |", "| |") in README
