"""A configuration survives every way of writing it down."""

import string
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.config.command import parse_command
from crucible_train.config.overrides import differences, to_overrides, to_yaml
from crucible_train.config.reading import number
from crucible_train.config.sections import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvalConfig,
    OptimConfig,
    PeftConfig,
)
from crucible_train.recipes.sft import SFTConfig

PROG = "python -m flows.sft"
TRICKY = st.sampled_from(
    [
        *(
            "",
            " ",
            "null",
            "~",
            "true",
            "on",
            "no",
            "yes",
            "123",
            "0.1",
            "1e-4",
            "1_000",
            "0x10",
            "nan",
            ".inf",
            "2024-01-01",
        ),
        *(
            "[a]",
            "{a: b}",
            '"',
            '"a"',
            "'a'",
            "a,b",
            "a: b",
            "#",
            "a #b",
            "- a",
            "<<",
            "=",
            "--x",
            "&a",
            "*a",
            "!!int 3",
        ),
        *("%a", "@a", "`a", "é", "😀", "a\nb", '"a\nb"', "a\\nb", "\t", "\u2028", "\x85", "\x7f"),
        *("all", "none", "tokenizer_default"),
    ]
)
TEXTS = TRICKY | st.text(max_size=12) | st.text(alphabet=string.printable, max_size=8)
PLAIN_TEXTS = TEXTS.filter(lambda text: not any("\ud800" <= character <= "\udfff" for character in text))
POSITIVE = st.floats(min_value=1e-12, max_value=1e6)
COUNTS = st.integers(1, 10**6)
STEPS = st.integers(0, 1000) | st.floats(0, 0.99)


def _fields(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any subset of the fields, each with a value of its strategy."""
    return st.fixed_dictionaries({}, optional=strategies)


DATA = _fields(
    format=st.sampled_from(["auto", "messages", "alpaca"]),
    columns=st.dictionaries(PLAIN_TEXTS, PLAIN_TEXTS, max_size=3),
    eval_split=st.floats(0, 0.99) | PLAIN_TEXTS,
    max_rows=st.none() | COUNTS,
    renderer=PLAIN_TEXTS,
    renderer_options=st.dictionaries(
        PLAIN_TEXTS,
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN_TEXTS,
        max_size=3,
    ),
).map(lambda fields: DataConfig(**fields))
PEFT = _fields(
    use_peft=st.booleans(), lora_alpha=POSITIVE, lora_target_modules=PLAIN_TEXTS | st.lists(PLAIN_TEXTS, max_size=3)
).map(lambda fields: PeftConfig(**fields))
OPTIM = _fields(
    learning_rate=POSITIVE, num_train_epochs=POSITIVE, max_steps=st.none() | COUNTS, adam_epsilon=POSITIVE
).map(lambda fields: OptimConfig(**fields))
ENGINE = _fields(
    precision=st.sampled_from(["auto", "float32", "bfloat16"]), activation_checkpointing=st.booleans()
).map(lambda fields: EngineConfig(**fields))
EVAL = _fields(eval_steps=STEPS, scorers=st.lists(PLAIN_TEXTS, max_size=3), metric_for_best_model=PLAIN_TEXTS).map(
    lambda fields: EvalConfig(**fields)
)
CHECKPOINT = _fields(save_steps=STEPS, resume_from_checkpoint=PLAIN_TEXTS).map(
    lambda fields: CheckpointConfig(**fields)
)
CONFIGS = _fields(
    model=PLAIN_TEXTS,
    dataset=PLAIN_TEXTS,
    run_name=st.none() | PLAIN_TEXTS,
    seed=st.integers(0, 2**32 - 1),
    report_to=st.lists(PLAIN_TEXTS, max_size=3),
    data=DATA,
    peft=PEFT,
    train=OPTIM,
    engine=ENGINE,
    eval=EVAL,
    checkpoint=CHECKPOINT,
).map(lambda fields: SFTConfig(**fields))


def _parse_file(text: str) -> SFTConfig:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sft.yaml"
        file.write_text(text, encoding="utf-8", newline="")
        command = parse_command(SFTConfig, ["--config", str(file)], PROG)
    assert command.notes == ()
    return command.config


def _dumped(value: Any) -> Any:
    """``value`` without texts that PyYAML writes bare although YAML 1.2 reads them as numbers, such as ``1e-4``."""
    if isinstance(value, dict):
        return {_dumped(key): _dumped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_dumped(item) for item in value]
    return f"text {value}" if isinstance(value, str) and number(value) is not None else value


@settings(max_examples=60, deadline=None)
@given(CONFIGS)
def test_overrides_reproduce_a_configuration(config: SFTConfig) -> None:
    command = parse_command(SFTConfig, to_overrides(config), PROG)
    assert command.config == config
    assert command.notes == ()


@settings(max_examples=40, deadline=None)
@given(CONFIGS, st.booleans())
def test_our_yaml_reproduces_a_configuration(config: SFTConfig, only_changed: bool) -> None:
    text = to_yaml(config, only_changed=only_changed)
    assert _parse_file(text) == config


@settings(max_examples=30, deadline=None)
@given(CONFIGS)
def test_a_dump_by_pyyaml_reproduces_a_configuration(config: SFTConfig) -> None:
    fields = _dumped(config.model_dump(mode="json"))
    fields["checkpoint"]["resume_from_checkpoint"] = "auto"
    fields["data"]["renderer"] = "auto"
    fields["peft"]["lora_target_modules"] = "all-linear"
    assert _parse_file(yaml.safe_dump(fields)) == SFTConfig.model_validate(fields)


@settings(max_examples=30, deadline=None)
@given(CONFIGS)
def test_differences_are_what_the_overrides_say(config: SFTConfig) -> None:
    changed = differences(config)
    assert [word.partition("=")[0] for word in to_overrides(config)] == list(changed)
    assert (config == SFTConfig()) == (changed == {})


def test_differences_hold_the_values() -> None:
    config = SFTConfig(model="x", train=OptimConfig(max_steps=3), data=DataConfig(columns={"prompt": "q"}))
    assert differences(config) == {"model": "x", "data.columns": {"prompt": "q"}, "train.max_steps": 3}
    assert to_overrides(config) == ["model=x", "data.columns={prompt: q}", "train.max_steps=3"]
    assert to_yaml(config, only_changed=True) == "model: x\ndata:\n  columns: {prompt: q}\ntrain:\n  max_steps: 3\n"
