"""The README's commands and examples are real."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from crucible_train.config.command import parse_command
from crucible_train.recipes.sft import SFTConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.partition("#")[0].strip() for line in README.splitlines() if line.startswith("python -m flows.")]


def test_the_first_command_stands_in_the_first_fifteen_lines() -> None:
    assert any(line.startswith("make sft") for line in README.splitlines()[:15])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text((ROOT / "examples" / "sft.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    parse_command(SFTConfig, shlex.split(command)[3:], "python -m flows.sft")


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5


def test_the_makefile_has_what_the_readme_and_ci_call() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = set(re.findall(r"make (\w+)", README + (ROOT / ".ci" / "run").read_text(encoding="utf-8")))
    assert called <= targets


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_configurations(path: Path) -> None:
    assert parse_command(SFTConfig, ["--config", str(path)], "python -m flows.sft").action == "run"


def test_deployments_name_the_flow_and_parameters_it_takes() -> None:
    deployments = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    for deployment in deployments:
        file, _, name = deployment["entrypoint"].partition(":")
        assert f"async def {name}(" in (ROOT / file).read_text(encoding="utf-8")
        SFTConfig.model_validate(deployment["parameters"]["config"])


def test_every_speed_in_the_readme_has_a_record() -> None:
    records = {path.name for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    named = set(re.findall(r"`results/([\w.-]+\.json)`", README))
    assert named
    assert named <= records
