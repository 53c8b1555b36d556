"""Options of environments: what may be given, in every place, and what is said of what may not."""

from pathlib import Path
from typing import Any

import pytest

from crucible_train.config.command import parse_command
from crucible_train.errors import ConfigError
from crucible_train.recipes.rl import RLConfig
from crucible_train.rl.environments import read_options
from crucible_train.rl.environments.gsm8k import Gsm8kOptions
from crucible_train.rl.environments.reasoning_gym import ReasoningGymOptions

TASK = {"task": "x", "task_options": {"min_digits": 1, "operators": ["+", "-"], "scale": 0.5, "signed": True}}
WRITTEN = "{task: x, task_options: {min_digits: 1, operators: [+, -], scale: 0.5, signed: true}}"


def parsed(*words: str) -> dict[str, Any]:
    return parse_command(RLConfig, [*words], "rl").config.env.options


def test_a_mapping_can_be_given_on_the_command_line() -> None:
    assert parsed(f"env.options={WRITTEN}") == TASK
    assert parsed("env.options.columns={prompt: question}") == {"columns": {"prompt": "question"}}


def test_a_mapping_can_be_given_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rl.yaml"
    file.write_text(f"env:\n  name: reasoning_gym\n  options: {WRITTEN}\n")
    assert parsed("--config", str(file)) == TASK


def test_a_mapping_fits_the_schema_that_flows_publish() -> None:
    value = RLConfig.model_json_schema()["$defs"]["EnvConfig"]["properties"]["options"]["additionalProperties"]
    [mapping] = [one for one in value["anyOf"] if one["type"] == "object"]
    kinds = {one["type"] for one in mapping["additionalProperties"]["anyOf"]}
    assert {"string", "integer", "number", "boolean", "array"} <= kinds
    assert RLConfig.model_validate({"env": {"options": TASK}}).env.options == TASK


def test_what_is_given_is_what_environments_read() -> None:
    task = read_options("reasoning_gym", parsed(f"env.options={WRITTEN}"))
    assert isinstance(task, ReasoningGymOptions)
    assert task.task_options == TASK["task_options"]
    words = read_options("gsm8k", parsed("env.options={columns: {prompt: q, completion: a}}"))
    assert isinstance(words, Gsm8kOptions)
    assert words.columns == {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize(
    ("name", "options", "lines"),
    [
        ("arithmetic", {"num_heldout": 3}, ["num_heldout: unknown; did you mean num_held_out?"]),
        (
            "arithmetic",
            {"num_shots": 9, "format_coef": -1, "shots": 2},
            [
                "shots: unknown; did you mean num_shots?",
                "num_shots: must be a whole number from 0 to 8, not 9",
                "format_coef: must be a number of 0 or more, not -1",
            ],
        ),
        ("arithmetic", {"operations": ["/"]}, ["operations[0]: must be one of +, - or *, not '/'"]),
        ("arithmetic", {"min_operand": 5, "max_operand": 3}, ["max_operand: is below min_operand"]),
        ("gsm8k", {"columns": "q"}, ["columns: must be name: text pairs, not 'q'"]),
        ("gsm8k", {"answer_form": "box"}, ["answer_form: must be hashes or boxed, not 'box'"]),
    ],
    ids=str,
)
def test_a_wrong_option_is_told_as_any_wrong_field_is(name: str, options: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as told:
        read_options(name, options)
    assert [*told.value.problems] == [f"env.options.{line}" for line in lines]


def test_where_nothing_is_near_the_names_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"xyzzy: unknown; the names here are operations, .*num_held_out"):
        read_options("arithmetic", {"xyzzy": 3})
