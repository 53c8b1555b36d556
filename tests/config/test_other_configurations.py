"""Nothing is made for one recipe only: other sections, deeper ones, required fields, rules, secrets."""

from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, model_validator

from crucible_train.config.base import Section, option
from crucible_train.config.command import parse_command
from crucible_train.config.overrides import differences, to_overrides, to_yaml
from crucible_train.config.plain_words import allowed
from crucible_train.config.sections import OptimConfig
from crucible_train.errors import ConfigError

PROG = "python -m flows.demo"


class SamplingConfig(Section):
    """How answers are drawn."""

    temperature: float = option(1.0, "heat, 0 or more", ge=0)
    group_size: int = option(4, "answers a prompt, 2 or more", ge=2)


class EnvironmentConfig(Section):
    """What is played."""

    name: str = option("chess", "its name")
    api_key: str | None = option(None, "of its server", min_length=5)
    sampling: SamplingConfig = option(SamplingConfig(), "draws")
    low: int = option(1, "lower end")
    high: int = option(2, "upper end")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must be at most high ({self.high}), not {self.low}")
        return self


class TeacherConfig(Section):
    """A model that teaches."""

    model: str
    weight: float = option(1.0, "share", gt=0)


class DemoConfig(Section):
    """A demonstration."""

    rounds: int = option(3, "how often, 1 or more", ge=1)
    teacher: TeacherConfig | None = option(None, "who teaches; null is nobody")
    teachers: list[TeacherConfig] = option([], "several who teach")
    mode: Literal["a", "b"] | None = option("a", "which way")
    env: EnvironmentConfig = option(EnvironmentConfig(name="go"), "environment")
    eval: SamplingConfig = option(SamplingConfig(temperature=0.0), "evaluation")
    train: OptimConfig = option(OptimConfig(learning_rate=1e-5), "optimizer")

    @model_validator(mode="after")
    def _rounds_fit(self) -> Self:
        if self.rounds > self.env.high:
            raise ValueError("rounds must be at most env.high")
        return self


class NeedyConfig(Section):
    """One field must be given."""

    model: str
    seed: int = option(0, "randomness")


def _changed(*argv: str) -> dict[str, object]:
    return differences(parse_command(DemoConfig, ["env.high=9", *argv], PROG).config)


def _problems(*argv: str, config_type: type[Section] = DemoConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_command(config_type, argv, PROG)
    return list(caught.value.problems)


def test_a_section_keeps_the_defaults_its_owner_chose() -> None:
    config = parse_command(DemoConfig, ["env.high=9", "train.max_steps=3", "env.sampling.group_size=8"], PROG).config
    assert config.train.learning_rate == 1e-5
    assert config.env.name == "go"
    assert differences(config) == {"env.high": 9, "env.sampling.group_size": 8, "train.max_steps": 3}
    assert parse_command(DemoConfig, to_overrides(config), PROG).config == config


def test_names_that_several_sections_have_need_their_section() -> None:
    expected = "command line: temperature: could be env.sampling.temperature or eval.temperature; write one of them"
    assert _problems("rounds=1", "temperature=1") == [expected]
    assert _changed("eval.temperature=1")["eval.temperature"] == 1.0


def test_optional_sections_and_lists_of_sections(tmp_path: Path) -> None:
    config = parse_command(
        DemoConfig, ["env.high=9", "teacher.model=m", "teachers=[{model: a}, {model: b, weight: 1e-1}]"], PROG
    ).config
    assert config.teacher == TeacherConfig(model="m")
    assert config.teachers == [TeacherConfig(model="a"), TeacherConfig(model="b", weight=0.1)]
    assert parse_command(DemoConfig, to_overrides(config), PROG).config == config
    file = tmp_path / "demo.yaml"
    file.write_text(to_yaml(config))
    assert parse_command(DemoConfig, ["--config", str(file)], PROG).config == config


def test_problems_inside_lists_of_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text(
        "env: {high: 9}\nteachers:\n- model: a\n  weight: 0\n- weigth: 1\nteacher:\n  weight: x\nmode: c\n"
    )
    assert _problems("--config", "demo.yaml") == [
        "demo.yaml:4: teachers[0].weight: must be a number above 0, not 0",
        "demo.yaml:5: teachers[1].model: is required",
        "demo.yaml:5: teachers[1].weigth: unknown; the names here are model, weight",
        "demo.yaml:6: teacher.model: is required",
        "demo.yaml:7: teacher.weight: must be a number above 0, not 'x'",
        "demo.yaml:8: mode: must be a or b, or null, not 'c'",
    ]


def test_rules_name_the_field_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text("rounds: 1\nenv:\n  low: 5\n")
    assert _problems("--config", "demo.yaml", "eval.group_size=1") == [
        "demo.yaml:3: env.low: must be at most high (2), not 5",
        "command line: eval.group_size: must be a whole number of 2 or more, not 1",
    ]
    assert _problems("rounds=3") == ["command line: rounds: must be at most env.high"]


def test_a_rule_that_speaks_of_a_wrong_field_waits() -> None:
    assert _problems("rounds=1", "env.low=5", "env.high=x") == [
        "command line: env.high: must be a whole number, not 'x'"
    ]


def test_secret_fields_are_not_shown() -> None:
    assert _problems("rounds=1", "env.api_key=abc") == [
        "command line: env.api_key: must be text of 5 or more characters, or null, not [redacted]"
    ]


def test_required_fields(tmp_path: Path) -> None:
    assert _problems(config_type=NeedyConfig) == ["command line: model: is required"]
    file = tmp_path / "needy.yaml"
    file.write_text("seed: 1\n")
    assert _problems("--config", str(file), config_type=NeedyConfig) == [f"{file}: model: is required"]
    assert parse_command(NeedyConfig, ["model=x"], PROG).config == NeedyConfig(model="x")
    assert "model=REQUIRED" in parse_command(NeedyConfig, ["--help"], PROG).text


def test_other_tools_names_count_only_where_their_field_is() -> None:
    assert _changed("lr=1e-3")["train.learning_rate"] == 1e-3
    assert _problems("rounds=1", "lora_rank=8") == [
        f"command line: lora_rank: unknown; `{PROG} --help` lists every field"
    ]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (Annotated[int, Field(ge=1, le=9)], "a whole number from 1 to 9"),
        (Annotated[float, Field(ge=0, lt=1)], "a number in [0, 1)"),
        (Annotated[float, Field(le=1)], "a number of at most 1"),
        (Annotated[int, Field(lt=1)], "a whole number below 1"),
        (int | float, "a number"),
        (
            Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)],
            "a whole number of 1 or more, or a number in (0, 1)",
        ),
        (Annotated[list[str], Field(min_length=1)], "a list of 1 or more texts"),
        (float | str, "a number or text"),
        (int | None, "a whole number or null"),
        (Literal["a", "b", "c"] | None, "one of a, b or c, or null"),
        (Literal["a"], "a"),
        (str | list[str], "text or a list of texts"),
        (list[int], "a list of whole numbers"),
        (dict[str, str], "name: text pairs"),
        (dict[str, int | None], "name: value pairs"),
        (bool, "true or false"),
        (Path, "a path"),
    ],
)
def test_plain_words(annotation: object, words: str) -> None:
    assert allowed(annotation) == words
