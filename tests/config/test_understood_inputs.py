"""Inputs that are understood: every way of writing a value, and the names and values of other tools."""

# ruff: noqa: E501  # one case a line

from pathlib import Path
from typing import Any

import pytest

from crucible_train.config.aliases import OTHER_NAMES, OTHER_WORDS
from crucible_train.config.command import Command, parse_command
from crucible_train.config.fields import tree_of
from crucible_train.config.overrides import differences
from crucible_train.recipes.rl import RLConfig
from crucible_train.recipes.sft import SFTConfig

PROG = "python -m flows.sft"


def _command(*argv: str) -> Command[SFTConfig]:
    return parse_command(SFTConfig, argv, PROG)


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ([], {}),
        (["train.learning_rate=1e-4"], {"train.learning_rate": 1e-4}),
        (["--train.learning_rate=1e-4"], {"train.learning_rate": 1e-4}),
        (["--train.learning-rate", "1e-4"], {"train.learning_rate": 1e-4}),
        (["learning-rate=1e-4"], {"train.learning_rate": 1e-4}),
        (["--seed", "7", "model=a", "--output-dir=out"], {"model": "a", "output_dir": "out", "seed": 7}),
        (["train={learning_rate: 1e-4, max_steps: 3}"], {"train.learning_rate": 1e-4, "train.max_steps": 3}),
        (["--activation_checkpointing", "seed=1"], {"seed": 1, "engine.activation_checkpointing": True}),
        (["--activation_checkpointing", "on"], {"engine.activation_checkpointing": True}),
        (["--use_peft", "no"], {"peft.use_peft": False}),
        (["use_peft=0"], {"peft.use_peft": False}),
        (["max_steps=1e3"], {"train.max_steps": 1000}),
        (["max_rows=1_000"], {"data.max_rows": 1000}),
        (["max_steps=5", "max_steps=null"], {}),
        (["max_steps=None"], {}),
        (["run_name=123"], {"run_name": "123"}),
        (["run_name=null"], {}),
        (['run_name="null"'], {"run_name": "null"}),
        (["run_name="], {"run_name": ""}),
        (["model=null"], {"model": "null"}),
        (["model=a=b"], {"model": "a=b"}),
        (["--model", "a=b"], {"model": "a=b"}),
        (["eval_split=0.25"], {"data.eval_split": 0.25}),
        (["eval_split=0"], {"data.eval_split": 0.0}),
        (["eval_split=held_out.jsonl"], {"data.eval_split": "held_out.jsonl"}),
        (['eval_split="0.25"'], {"data.eval_split": "0.25"}),
        (["eval_steps=10"], {"eval.eval_steps": 10}),
        (["scorers=[a, b]"], {"eval.scorers": ["a", "b"]}),
        (["scorers=a,b"], {"eval.scorers": ["a", "b"]}),
        (["scorers=a"], {"eval.scorers": ["a"]}),
        (["scorers=[]"], {"eval.scorers": []}),
        (["scorers="], {"eval.scorers": []}),
        (["lora_target_modules=q_proj"], {"peft.lora_target_modules": "q_proj"}),
        (["lora_target_modules=q_proj,v_proj"], {"peft.lora_target_modules": ["q_proj", "v_proj"]}),
        (["lora_target_modules=[qv]_proj"], {"peft.lora_target_modules": "[qv]_proj"}),
        (["data.columns.prompt=question", "columns.the-answer=b"], {"data.columns": {"prompt": "question", "the-answer": "b"}}),
        (["columns={prompt: question}"], {"data.columns": {"prompt": "question"}}),
        (["columns={a: b}", "columns.c=d"], {"data.columns": {"a": "b", "c": "d"}}),
        (
            ["renderer_options.enable_thinking=false", "renderer_options.date_string=2024-01-01"],
            {"data.renderer_options": {"enable_thinking": False, "date_string": "2024-01-01"}},
        ),
        (["precision=bf16"], {"engine.precision": "bfloat16"}),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_command_line_values(argv: list[str], changed: dict[str, Any]) -> None:
    found = differences(_command(*argv).config)
    assert found == changed
    assert [type(value) for value in found.values()] == [type(value) for value in changed.values()]


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("---\n", {}),
        ("\ufeffseed: 3\n", {"seed": 3}),
        ("train:\n", {}),
        ("train:\n  learning_rate: 1e-4\n", {"train.learning_rate": 1e-4}),
        ("train:\n  learning_rate: '1e-4'\n", {"train.learning_rate": 1e-4}),
        ("train: {learning-rate: 1.e-4}\n", {"train.learning_rate": 1e-4}),
        ("train.learning_rate: 1e-4\n", {"train.learning_rate": 1e-4}),
        ("learning_rate: 1e-4\n", {"train.learning_rate": 1e-4}),
        ("use_peft: off\nrun_name: off\n", {"run_name": "off", "peft.use_peft": False}),
        ("seed: 010\n", {"seed": 10}),
        ("run_name: 010\nmodel: 2024-01-01\n", {"model": "2024-01-01", "run_name": "010"}),
        ("run_name: ~\n", {}),
        ("run_name: 'null'\n", {"run_name": "null"}),
        ("eval:\n  scorers:\n  - a\n  - 1\n", {"eval.scorers": ["a", "1"]}),
        ("report_to:\n", {"report_to": []}),
        ("data:\n  columns:\n    prompt: 5\n", {"data.columns": {"prompt": "5"}}),
        ("data:\n  columns.prompt: q\n", {"data.columns": {"prompt": "q"}}),
        ("renderer_options: {a: 1, b: 1.0, c: 'x', d: null, e: off}\n", {"data.renderer_options": {"a": 1, "b": 1.0, "c": "x", "d": None, "e": "off"}}),
    ],
    ids=repr,
)  # fmt: skip
def test_file_values(text: str, changed: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text(text, encoding="utf-8")
    command = _command("--config", str(file))
    assert differences(command.config) == changed
    assert command.notes == ()


def test_the_command_line_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text("seed: wrong\nmodel: a\ndata:\n  columns: {a: b, c: d}\n")
    command = _command("seed=5", f"--config={file}", "columns.a=x")
    assert differences(command.config) == {"model": "a", "seed": 5, "data.columns": {"a": "x", "c": "d"}}


@pytest.mark.parametrize(
    ("word", "changed", "note"),
    [
        ("base_model=x", {"model": "x"}, "base_model: read as model"),
        ("lr=1e-4", {"train.learning_rate": 1e-4}, "lr: read as train.learning_rate"),
        ("train.lr=1e-4", {"train.learning_rate": 1e-4}, "lr: read as train.learning_rate"),
        ("--cutoff-len=512", {"data.max_length": 512}, "cutoff_len: read as data.max_length"),
        ("bf16=true", {"engine.precision": "bfloat16"}, "bf16: true read as engine.precision=bfloat16"),
        ("--bf16", {"engine.precision": "bfloat16"}, "bf16: true read as engine.precision=bfloat16"),
        ("bf16=no", {"engine.precision": "float32"}, "bf16: false read as engine.precision=float32"),
        ("packing=true", {}, "packing: conversations are always packed into streams, and none sees another"),
        ("packing=false", {}, "packing: conversations are always packed into streams, and none sees another"),
        ("load_in_4bit=false", {}, "load_in_4bit: false is always so here"),
        ("adapter=lora", {}, "adapter: lora read as peft.use_peft=true"),
        ("adapter=", {"peft.use_peft": False}, "adapter: null read as peft.use_peft=false"),
        ("finetuning_type=full", {"peft.use_peft": False}, "finetuning_type: full read as peft.use_peft=false"),
        ("train_on_inputs=true", {"data.train_on": "all_tokens"}, "train_on_inputs: true read as data.train_on=all_tokens"),
        ("val_set_size=0.2", {"data.eval_split": 0.2}, "val_set_size: read as data.eval_split"),
        ("warmup_ratio=0", {"train.warmup_steps": 0.0}, "warmup_ratio: read as train.warmup_steps"),
        ("eval_strategy=no", {"eval.eval_steps": 0}, "eval_strategy: no read as eval.eval_steps=0"),
        ("lora_target=all", {}, "lora_target: all read as peft.lora_target_modules=all-linear"),
        ("lr_scheduler_type=warmup_stable_decay", {"train.lr_scheduler_type": "wsd"}, "train.lr_scheduler_type: warmup_stable_decay read as wsd"),
        ("resume_from_checkpoint=false", {"checkpoint.resume_from_checkpoint": "never"}, "checkpoint.resume_from_checkpoint: false read as never"),
        ("report_to=none", {"report_to": []}, "report_to: none read as []"),
    ],
)  # fmt: skip
def test_other_tools_names_get_one_note(word: str, changed: dict[str, Any], note: str) -> None:
    command = _command(word)
    assert differences(command.config) == changed
    assert command.notes == (note,)


def test_a_name_given_twice_on_the_command_line_is_noted() -> None:
    command = _command("lr=1e-4", "learning_rate=3e-4")
    assert command.config.train.learning_rate == 3e-4
    assert command.notes == (
        "lr: read as train.learning_rate",
        "train.learning_rate: given more than once; the last one is used",
    )


def test_the_table_of_other_names_fits_the_configurations() -> None:
    """What a name means, it means in a configuration that has no such name of its own."""
    trees = [tree_of(SFTConfig), tree_of(RLConfig)]
    for name, other in OTHER_NAMES.items():
        meant = [tree for tree in trees if not other.targets or other.target(tree) is not None]
        assert meant
        assert not any(name in {*tree.leaves, *tree.named, *tree.branches} for tree in meant)
        assert other.always or other.hint or (other.words is None and not other.share_only)
    assert set(OTHER_WORDS) <= set(trees[0].leaves)


@pytest.mark.parametrize(
    ("argv", "action"),
    [
        ([], "run"),
        (["--dry-run"], "dry_run"),
        (["--dry_run", "seed=1"], "dry_run"),
        (["dry_run=true"], "dry_run"),
        (["--dry-run=false"], "run"),
        (["-h"], "help"),
        (["--help", "nonsense", "seed=x"], "help"),
        (["--schema", "--dry-run"], "schema"),
        (["--help_all"], "help_all"),
    ],
)
def test_actions(argv: list[str], action: str) -> None:
    command = _command(*argv)
    assert command.action == action
    assert bool(command.text) == (action in ("help", "help_all", "schema"))
