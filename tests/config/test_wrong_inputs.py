"""Wrong inputs, each with every line that the user reads."""

# ruff: noqa: E501  # one case a line

from pathlib import Path

import pytest

from crucible_train.config.command import parse_command
from crucible_train.errors import ConfigError
from crucible_train.recipes.sft import SFTConfig

PROG = "python -m flows.sft"

WRONG_COMMAND_LINES: list[tuple[list[str], list[str]]] = [
    (
        ["train.num_train_epoch=3"],
        ["command line: train.num_train_epoch: unknown; did you mean train.num_train_epochs?"],
    ),
    (["num_train_epoch=3"], ["command line: num_train_epoch: unknown; did you mean num_train_epochs?"]),
    (["--learing-rate", "3"], ["command line: learing-rate: unknown; did you mean learning_rate?"]),
    (["data.learning_rate=1"], ["command line: data.learning_rate: unknown; did you mean train.learning_rate?"]),
    (["optim.learning_rate=1"], ["command line: optim.learning_rate: unknown; did you mean train.learning_rate?"]),
    (["trian.learning_rate=4"], ["command line: trian.learning_rate: unknown; did you mean train.learning_rate?"]),
    (["cutof_len=5"], ["command line: cutof_len: unknown; did you mean cutoff_len (data.max_length here)?"]),
    (["steps=4"], ["command line: steps: unknown; did you mean max_steps or eval_steps?"]),
    (["xyzzy=4"], ["command line: xyzzy: unknown; `python -m flows.sft --help` lists every field"]),
    (["data.max_length.x=1"], ["command line: data.max_length.x: unknown; did you mean data.max_length?"]),
    (
        ["api_key=hunter2"],
        [
            "command line: api_key: not a field; secrets are taken from the environment (HF_TOKEN for the hub), never from the command line or a file"
        ],
    ),
    (
        ["--wandb-token", "hunter2"],
        [
            "command line: wandb-token: not a field; secrets are taken from the environment (HF_TOKEN for the hub), never from the command line or a file"
        ],
    ),
    (["max_steps=three"], ["command line: train.max_steps: must be a whole number of 1 or more, or null, not 'three'"]),
    (["max_steps=1.5"], ["command line: train.max_steps: must be a whole number of 1 or more, or null, not 1.5"]),
    (["max_steps=true"], ["command line: train.max_steps: must be a whole number of 1 or more, or null, not true"]),
    (["max_steps="], ["command line: train.max_steps: must be a whole number of 1 or more, or null, not ''"]),
    (["lr=0"], ["command line: train.learning_rate (given as lr): must be a number above 0 or null, not 0"]),
    (["--learning_rate", "-1"], ["command line: train.learning_rate: must be a number above 0 or null, not -1"]),
    (["learning_rate=inf"], ["command line: train.learning_rate: must be a number above 0 or null, not 'inf'"]),
    (["seed=-1"], ["command line: seed: must be a whole number from 0 to 4294967295, not -1"]),
    (["top_p=0"], ["command line: eval.top_p: must be a number in (0, 1], not 0"]),
    (["lora_dropout=1"], ["command line: peft.lora_dropout: must be a number in [0, 1), not 1"]),
    (["min_lr_ratio=1.5"], ["command line: train.min_lr_ratio: must be a number in [0, 1], not 1.5"]),
    (["device=tpu"], ["command line: engine.device: must be one of auto, cpu or cuda, not 'tpu'"]),
    (["on_bad_row=skip"], ["command line: data.on_bad_row: must be stop or quarantine, not 'skip'"]),
    (["--use_peft", "maybe"], ["command line: peft.use_peft: must be true or false, not 'maybe'"]),
    (["eval_split=1.5"], ["command line: data.eval_split: must be a number in [0, 1) or text, not 1.5"]),
    (
        ["eval_split=-1", "max_length=1"],
        [
            "command line: data.eval_split: must be a number in [0, 1) or text, not -1",
            "command line: data.max_length: must be a whole number of 2 or more, not 1",
        ],
    ),
    (["data.columns=5"], ["command line: data.columns: must be name: text pairs, not 5"]),
    (
        ["data.columns={prompt: question"],
        ["command line: data.columns: must be name: text pairs, not {prompt: question"],
    ),
    (["data.columns={prompt: [1]}"], ["command line: data.columns.prompt: must be text, not [1]"]),
    (["data.columns={a: 1, a: 2}"], ["command line: data.columns: must be name: text pairs, not {a: 1, a: 2}"]),
    (["scorers=null"], ["command line: eval.scorers: must be a list of texts, not null"]),
    (["scorers=[a, [b]]"], ["command line: eval.scorers[1]: must be text, not ['b']"]),
    (["train=5"], ["command line: train: is a section; give its fields such as train.learning_rate"]),
    (["--train"], ["command line: train: is a section; give its fields such as train.learning_rate"]),
    (["sft.yaml"], ["command line: 'sft.yaml': not understood; did you mean --config sft.yaml?"]),
    (
        ["learning_rate", "4"],
        [
            "command line: learning_rate: needs a value; write learning_rate=VALUE",
            "command line: 4: not understood; write field=value",
        ],
    ),
    (["-lr=3"], ["command line: '-lr=3': not understood; did you mean --lr=3?"]),
    (["--lr"], ["command line: lr: needs a value"]),
    (["--"], ["command line: '--': not understood; write field=value"]),
    (["=5"], ["command line: '=5': not understood; write field=value"]),
    (["--dryrun"], ["command line: dryrun: unknown; did you mean --dry-run?"]),
    (["--dryrun", "seed=1"], ["command line: dryrun: unknown; did you mean --dry-run?"]),
    (["dryrun=true"], ["command line: dryrun: unknown; did you mean --dry-run?"]),
    (["dryrun"], ["command line: 'dryrun': not understood; did you mean --dry-run?"]),
    (["dry-run"], ["command line: 'dry-run': not understood; did you mean --dry-run?"]),
    (["-dry-run"], ["command line: '-dry-run': not understood; did you mean --dry-run?"]),
    (["--help-al"], ["command line: help-al: unknown; did you mean --help-all?"]),
    (["--cofnig", "sft.yaml"], ["command line: cofnig: unknown; did you mean --config?"]),
    (
        ["hf_token=hunter2"],
        [
            "command line: hf_token: not a field; secrets are taken from the environment (HF_TOKEN for the hub), never from the command line or a file"
        ],
    ),
    (
        ["token=hunter2"],
        [
            "command line: token: not a field; secrets are taken from the environment (HF_TOKEN for the hub), never from the command line or a file"
        ],
    ),
    (
        ["password=hunter2"],
        [
            "command line: password: not a field; secrets are taken from the environment (HF_TOKEN for the hub), never from the command line or a file"
        ],
    ),
    (["pad_token=x"], ["command line: pad_token: unknown; `python -m flows.sft --help` lists every field"]),
    (["--dry-run=maybe"], ["command line: dry_run: must be true or false, not 'maybe'"]),
    (["--config"], ["command line: config: needs the name of a YAML file"]),
    (
        ["--config", "a.yaml", "--config", "b.yaml"],
        [
            "a.yaml: there is no such file",
            "command line: config: given twice; one file is read, and field=value beats it",
        ],
    ),
    (["--config", "missing.yaml"], ["missing.yaml: there is no such file"]),
    (["--config", "/"], ["/: this is a folder; --config takes a YAML file"]),
    (
        ["fp16=true"],
        [
            "command line: fp16: true has no counterpart here; float16 is not offered; use engine.precision=bfloat16 or float32"
        ],
    ),
    (
        ["adapter=qlora"],
        ["command line: adapter: 'qlora' has no counterpart here; only lora and full are offered; use peft.use_peft"],
    ),
    (
        ["load_in_4bit=true"],
        [
            "command line: load_in_4bit: true has no counterpart here; weights are not quantised for training; remove it (peft.use_peft=true keeps memory small)"
        ],
    ),
    (
        ["val_set_size=500"],
        [
            "command line: val_set_size: 500 has no counterpart here; data.eval_split takes a share of the rows in [0, 1), not a count; or the path of another data set"
        ],
    ),
    (
        ["warmup_ratio=3"],
        ["command line: warmup_ratio: 3 has no counterpart here; train.warmup_steps takes a share in [0, 1)"],
    ),
    (["optim=sgd"], ["command line: optim: 'sgd' has no counterpart here; only AdamW is offered; remove it"]),
    (
        ["datasets=x"],
        ["command line: datasets: has no counterpart here; give one data set as dataset: a path, a folder or a hub id"],
    ),
    (
        ["dataset_test_split=test"],
        [
            "command line: dataset_test_split: has no counterpart here; give data.eval_split instead: a share of the rows in [0, 1), or the path of another data set"
        ],
    ),
    (
        ["evals_per_epoch=4"],
        [
            "command line: evals_per_epoch: has no counterpart here; give eval.eval_steps instead: every N steps, or every share of the run in (0, 1)"
        ],
    ),
    (
        ["eval_strategy=epoch"],
        [
            "command line: eval_strategy: 'epoch' has no counterpart here; give eval.eval_steps instead: every N steps, or every share of the run in (0, 1)"
        ],
    ),
    (
        ["gradient_checkpointing=unsloth"],
        [
            "command line: engine.activation_checkpointing (given as gradient_checkpointing): must be true or false, not 'unsloth'"
        ],
    ),
    (
        ["seed=hf_abcdefghijklmnopqrstuv"],
        ["command line: seed: must be a whole number from 0 to 4294967295, not '[redacted]'"],
    ),
    (
        ["seed=https://me:hunter2@host/x"],
        ["command line: seed: must be a whole number from 0 to 4294967295, not 'https://me:[redacted]@host/x'"],
    ),
    (
        ["seed={password: hunter2}"],
        ["command line: seed: must be a whole number from 0 to 4294967295, not {password: [redacted]}"],
    ),
    (
        ["password", "hunter2"],
        [
            "command line: 'password': not understood; write field=value",
            "command line: [redacted]: not understood; write field=value",
        ],
    ),
    (
        ["seed=" + "x" * 100],
        [
            "command line: seed: must be a whole number from 0 to 4294967295, not 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'"
        ],
    ),
    (
        ["model=a", "seed=b", "nope=c", "lr=d"],
        [
            "command line: seed: must be a whole number from 0 to 4294967295, not 'b'",
            "command line: nope: unknown; `python -m flows.sft --help` lists every field",
            "command line: train.learning_rate (given as lr): must be a number above 0 or null, not 'd'",
        ],
    ),
    (["a\nb=5"], ["command line: a\\nb: unknown; `python -m flows.sft --help` lists every field"]),
]

WRONG_FILES: list[tuple[str | bytes, list[str]]] = [
    (
        "train:\n  learning_rate: 1e-4\n  num_train_epoch: 3\n",
        ["sft.yaml:3: train.num_train_epoch: unknown; did you mean num_train_epochs?"],
    ),
    ("train:\n  data:\n    max_length: 5\n", ["sft.yaml:2: train.data: unknown; did you mean data?"]),
    ("optimizer:\n  learning_rate: 1\n  max_steps: 2\n", ["sft.yaml:1: optimizer: unknown; did you mean train?"]),
    ("train: 5\n", ["sft.yaml:1: train: is a section; give its fields such as train.learning_rate"]),
    ("- a\n", ["sft.yaml:1: the file must hold lines of field: value, not a list or a single value"]),
    ("hello\n", ["sft.yaml:1: the file must hold lines of field: value, not a list or a single value"]),
    ("a: [1\n", ["sft.yaml:1:4: not valid YAML: this bracket is not closed"]),
    ("model: 'x\n", ["sft.yaml:1:8: not valid YAML: this quote is not closed"]),
    ("a: b: c\n", ["sft.yaml:1:5: not valid YAML: this colon cannot stand here; put a text that holds one in quotes"]),
    ("train:\n\tseed: 1\n", ["sft.yaml:2:1: not valid YAML: a tab; indent with spaces"]),
    (
        "model\nseed: 1\n",
        ["sft.yaml:2:5: not valid YAML: this colon cannot stand here; put a text that holds one in quotes"],
    ),
    ("model: x\nseed: 1\nmodel: y\n", ["sft.yaml:3: model: given twice, first on line 1"]),
    (
        "learning_rate: 1\ntrain:\n  lr: 1\n",
        ["sft.yaml:3: train.learning_rate (given as train.lr): given twice, first on line 1"],
    ),
    ("train:\n  max_steps: 4\ntrain:\n  max_steps: 5\n", ["sft.yaml:3: train: given twice, first on line 1"]),
    ("data:\n  columns:\n    a: b\n    a: c\n", ["sft.yaml:4: data.columns.a: given twice, first on line 3"]),
    (
        "model: !!python/object/apply:os.system [ls]\n",
        ["sft.yaml:1:8: the tag !!python/object/apply:os.system is not read; write the value out"],
    ),
    ("model: !mine x\n", ["sft.yaml:1:8: the tag !mine is not read; write the value out"]),
    ("seed: &x 1\ntrain:\n  max_steps: *x\n", ["sft.yaml:3:14: an alias is not read; write the value out"]),
    ("<<: {seed: 1}\n", ["sft.yaml:1:1: a merge (<<) is not read; write the value out"]),
    ("? [a]\n: 1\n", ["sft.yaml:1:3: a name that is not text is not read; write the value out"]),
    ("seed: 1\n---\nseed: 2\n", ["sft.yaml:2:1: not valid YAML: a second document begins; a configuration is one"]),
    ("model: \0\n", ["sft.yaml:1:8: not valid YAML: the character U+0000 is not allowed"]),
    (b"seed: 1\nmodel: \xff\n", ["sft.yaml:2: this is not UTF-8 text"]),
    ("model: null\n", ["sft.yaml:1: model: must be text, not null"]),
    ("model: [a, b]\n", ["sft.yaml:1: model: must be text, not ['a', 'b']"]),
    (
        "train:\n  num_train_epochs: {a: 1}\n",
        ["sft.yaml:2: train.num_train_epochs: must be a number above 0, not {a: 1}"],
    ),
    (
        "data:\n  hf_token: hunter2\n",
        [
            "sft.yaml:2: data.hf_token: not a field; secrets are taken from the environment (HF_TOKEN for the hub), never from the command line or a file"
        ],
    ),
    ("dry_run: true\n", ["sft.yaml:1: dry_run: not a field; give it on the command line as --dry-run"]),
    ("seed: '[\n", ["sft.yaml:1:7: not valid YAML: this quote is not closed"]),
    (
        "max_steps: three\nlora_r: 0\nfoo: 1\neval:\n  scorers:\n    - a\n    - [1]\n  max_new_tokens: 0\ndata:\n  columns:\n    a: b\n    c: null\n",
        [
            "sft.yaml:1: train.max_steps: must be a whole number of 1 or more, or null, not 'three'",
            "sft.yaml:2: peft.lora_r: must be a whole number of 1 or more, not 0",
            "sft.yaml:3: foo: unknown; `python -m flows.sft --help` lists every field",
            "sft.yaml:7: eval.scorers[1]: must be text, not [1]",
            "sft.yaml:8: eval.max_new_tokens: must be a whole number of 1 or more, not 0",
            "sft.yaml:12: data.columns.c: must be text, not null",
        ],
    ),
    ("[" * 4000, ["sft.yaml:1:31: nested too deeply"]),
    ('seed: "\\UFFFFFFFF"\n', ["sft.yaml: an escape such as \\UFFFFFFFF names no character"]),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _problems(argv: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_command(SFTConfig, argv, PROG)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


@pytest.mark.parametrize(("argv", "lines"), WRONG_COMMAND_LINES, ids=lambda value: str(value)[:50])
def test_wrong_command_line(argv: list[str], lines: list[str]) -> None:
    assert _problems(argv) == lines


@pytest.mark.parametrize(("text", "lines"), WRONG_FILES, ids=lambda value: repr(value)[:50])
def test_wrong_file(text: str | bytes, lines: list[str]) -> None:
    Path("sft.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert _problems(["--config", "sft.yaml"]) == lines


def test_the_golden_cases_are_many() -> None:
    assert len(WRONG_COMMAND_LINES) + len(WRONG_FILES) >= 80


def test_problems_of_file_and_command_line_come_together_in_order() -> None:
    Path("sft.yaml").write_text("seed: x\nmodle: y\ntrain: {max_steps: 0}\n")
    assert _problems(["nope=1", "--config", "sft.yaml", "lr=0"]) == [
        "sft.yaml:1: seed: must be a whole number from 0 to 4294967295, not 'x'",
        "sft.yaml:2: modle: unknown; did you mean model?",
        "sft.yaml:3: train.max_steps: must be a whole number of 1 or more, or null, not 0",
        "command line: nope: unknown; `python -m flows.sft --help` lists every field",
        "command line: train.learning_rate (given as lr): must be a number above 0 or null, not 0",
    ]


def test_a_misspelt_file_name_gets_the_nearest() -> None:
    Path("sft.yaml").write_text("seed: 1\n")
    assert _problems(["--config", "stf.yaml"]) == ["stf.yaml: there is no such file; did you mean sft.yaml?"]


def test_a_file_of_another_kind_is_not_read_whole() -> None:
    Path("model.safetensors").write_bytes(b"a" * (1 << 20) + b"b")
    assert _problems(["--config", "model.safetensors"]) == [
        "model.safetensors: larger than 1 MiB; is this the configuration?"
    ]


def test_problems_never_span_lines_nor_show_secrets() -> None:
    argv = ["seed=a\nb", "seed.token=hunter2", "--password", "hunter2", "report_to={api_key: hunter2}"]
    problems = _problems(argv)
    assert all(problem.isprintable() for problem in problems)
    assert "hunter2" not in "".join(problems)
