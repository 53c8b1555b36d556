"""What ``--help``, ``--help-all`` and ``--schema`` print."""

import json
import subprocess
import sys

import pytest

from crucible_train.config.base import Section, option
from crucible_train.config.command import parse_command
from crucible_train.config.fields import tree_of
from crucible_train.config.writing import as_text
from crucible_train.recipes.sft import SFTConfig

PROG = "python -m flows.sft"
LEAVES = tree_of(SFTConfig).leaves.values()


def _text(option_word: str, config_type: type[Section] = SFTConfig) -> str:
    return parse_command(config_type, [option_word], PROG).text


def test_help_fits_a_screen() -> None:
    lines = _text("--help").splitlines()
    assert len(lines) <= 60
    assert max(len(line) for line in lines) <= 110
    assert all(line == line.rstrip() for line in lines)


def test_help_lists_every_field_with_its_default() -> None:
    words = _text("--help").split()
    for leaf in LEAVES:
        assert f"{leaf.name}={as_text(leaf.default, leaf.annotation)}" in words


def test_main_fields_have_a_line_of_their_own() -> None:
    lines = _text("--help").splitlines()
    for leaf in LEAVES:
        if not leaf.advanced:
            line = next(line for line in lines if line.startswith(f"  {leaf.name}="))
            assert line.split(maxsplit=1)[1].startswith(leaf.description[:20])


def test_help_says_how_to_use_it() -> None:
    text = _text("--help")
    for word in ("--config", "--dry-run", "--help-all", "--schema", "field=value", "130", "143", "Examples:"):
        assert word in text


def test_full_help_describes_every_field() -> None:
    text = _text("--help-all")
    flat = " ".join(text.split())
    assert max(len(line) for line in text.splitlines()) <= 110
    for leaf in LEAVES:
        assert f"  {leaf.path}=" in text
        assert leaf.description[1:] in flat
    assert "Takes one of constant, linear, cosine or wsd. Other tools: lr_scheduler, lr_schedule." in flat
    assert "Takes a whole number of 1 or more, or null. Other tools: max_train_steps." in flat


def test_schema_is_json_schema_of_the_same_fields() -> None:
    schema = json.loads(_text("--schema"))
    assert set(schema["properties"]) == set(SFTConfig.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["OptimConfig"]["properties"]["adam_epsilon"]["exclusiveMinimum"] == 0


@pytest.mark.parametrize("number_of_fields", [1, 200])
def test_any_number_of_fields_fits(number_of_fields: int) -> None:
    annotations = {f"field_{index}": int for index in range(number_of_fields)}
    fields = {name: option(5, "a number of things that is described at some length, 1 or more") for name in annotations}
    many = type(
        "Many", (Section,), {"__doc__": "Many.", "__annotations__": annotations, "__module__": __name__, **fields}
    )
    lines = _text("--help", many).splitlines()
    assert len(lines) <= 60
    assert max(len(line) for line in lines) <= 110
    assert sum(line.count("=5") for line in lines) == number_of_fields


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from crucible_train.config.command import parse_command; "
        "from crucible_train.recipes.sft import SFTConfig; parse_command(SFTConfig, ['--help'], 'x'); "
        "heavy = ('torch', 'transformers', 'prefect', 'datasets', 'pyarrow', 'rich'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
