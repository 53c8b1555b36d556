"""Wrong input, as a user meets it: exit status 2, a few lines that name the cause, no traceback, no wait.

What the configuration's reader finds has its own tests (``tests/config``); what only the run can find, ``tests/flows``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crucible_train.config.command import parse_command
from crucible_train.errors import ConfigError, InputError
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages.sft_preflight import check

ROOT = Path(__file__).parents[1]
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'

OWN_CODE, NO_TOKENIZER = '{"auto_map": {}}', '{"model": 5}'
BLANK, QUESTIONS = "\n\n", '{"q": "a", "a": "b"}\n'

Case = tuple[Callable[[Path], list[str]], str]


def _model(folder: Path, *, without: str = "", **files: str) -> Path:
    """A folder that has what a model's folder must have, but for one file; nothing in it is loaded."""
    folder = folder / "m"
    folder.mkdir()
    contents = {"config.json": "{}", "model.safetensors": _WEIGHTS, "tokenizer.json": _TOKENIZER} | files
    for name, text in contents.items():
        if name != without:
            (folder / name).write_text(text)
    return folder


_TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
)
_WEIGHTS = "\x02" + "\0" * 7 + "{}"
_TEMPLATE = json.dumps({"chat_template": "{{ messages }}"})


def _file(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


CASES: dict[str, Case] = {
    "misspelt field": (
        lambda at: ["train.learning_rat=1"],
        r"command line: train.learning_rat: unknown; did you mean train.learning_rate\?",
    ),
    "misspelt field in a file": (
        lambda at: ["--config", str(_file(at, "sft.yaml", "seed: 1\ntrain:\n  num_train_epoch: 3\n"))],
        r".*sft.yaml:3: train.num_train_epoch: unknown; did you mean num_train_epochs\?",
    ),
    "unknown section": (lambda at: ["optimiser.beta=1"], r"command line: optimiser.beta: unknown; .*"),
    "wrong type": (lambda at: ["max_steps=many"], r"command line: train.max_steps: must be a whole number .*"),
    "out of range": (lambda at: ["peft.lora_r=0"], r"command line: peft.lora_r: must be a whole number of 1 or more.*"),
    "negative rate": (
        lambda at: ["learning_rate=-1"],
        r"command line: train.learning_rate: must be a number above 0.*",
    ),
    "rate that is no number": (lambda at: ["learning_rate=nan"], r"command line: train.learning_rate: must be .*"),
    "zero epochs": (lambda at: ["num_train_epochs=0"], r"command line: train.num_train_epochs: must be .* above 0.*"),
    "no such configuration": (lambda at: ["--config", str(at / "no.yaml")], r".*no.yaml: there is no such file"),
    "broken YAML": (
        lambda at: ["--config", str(_file(at, "sft.yaml", "train: [1\n"))],
        r".*sft.yaml:1:\d+: not valid YAML: .*",
    ),
    "field given twice": (
        lambda at: ["--config", str(_file(at, "sft.yaml", "seed: 1\nseed: 2\n"))],
        r".*sft.yaml:2: seed: given twice, first on line 1",
    ),
    "bad renderer": (
        lambda at: ["data.renderer=lama3"],
        r"data.renderer: 'lama3' is unknown; known are auto, .*chat_template.*",
    ),
    "bad scorer": (
        lambda at: ["eval.scorers=[bleu]"],
        r"eval.scorers: 'bleu' is unknown; known are auto, answer_format.*",
    ),
    "bad logger": (lambda at: ["report_to=[consol]"], r"report_to: 'consol' is unknown; known are .*console.*"),
    "metric that is never measured": (
        lambda at: ["eval.metric_for_best_model=eval/bleu"],
        r"eval.metric_for_best_model: 'eval/bleu' is not measured; measured are eval/bits_per_byte, eval/nll.*",
    ),
    "held-out metric and nothing held out": (
        lambda at: ["data.eval_split=0", "eval.early_stopping_patience=2"],
        r"eval.metric_for_best_model: 'eval/nll' is not measured; measured are optim/.*",
    ),
    "no data file": (
        lambda at: [f"dataset={_file(at, 'rows.jsonl', ROW).with_name('row.jsonl')}"],
        r"dataset: .*row.jsonl: there is no such file or folder; did you mean .*rows.jsonl\?",
    ),
    "empty data file": (
        lambda at: [f"dataset={_file(at, 'rows.jsonl', '')}"],
        r"dataset: .*rows.jsonl: it holds no rows",
    ),
    "blank data file": (
        lambda at: [f"dataset={_file(at, 'rows.jsonl', BLANK)}"],
        r"dataset: .*rows.jsonl: it holds no rows",
    ),
    "unknown kind of file": (
        lambda at: [f"dataset={_file(at, 'rows.docx', 'x')}"],
        r"dataset: .*rows.docx: files of this kind are not read; taken are .*",
    ),
    "unknown columns": (
        lambda at: [f"dataset={_file(at, 'rows.jsonl', QUESTIONS)}"],
        r"dataset: .*rows.jsonl: the columns are q, a, and .* data.columns=\{prompt: q, completion: a\}",
    ),
    "folder of other things": (
        lambda at: [f"dataset={_file(at, 'notes.txt', 'x').parent}"],
        r"dataset: .*: the folder holds notes.txt; taken are .*",
    ),
    "no held-out file": (
        lambda at: [f"data.eval_split={at / 'held.jsonl'}"],
        r"data.eval_split: .*held.jsonl: there is no such file or folder.*",
    ),
    "empty held-out file": (
        lambda at: [f"data.eval_split={_file(at, 'held.jsonl', '')}"],
        r"data.eval_split: .*held.jsonl: it holds no rows",
    ),
    "no model folder": (lambda at: [f"model={at / 'm'}"], r"model: .*/m: there is no such file or folder.*"),
    "model without config.json": (
        lambda at: [f"model={_model(at, without='config.json')}"],
        r"model: .*/m: no config.json there; the folder holds model.safetensors, tokenizer.json",
    ),
    "model without weights": (
        lambda at: [f"model={_model(at, without='model.safetensors')}"],
        r"model: .*/m: safetensors weights are needed, and there are none",
    ),
    "model whose weights are damaged": (
        lambda at: [f"model={_model(at, **{'model.safetensors': 'no weights at all'})}", "data.renderer=role_colon"],
        r"model: .*/m/model.safetensors: error while deserializing header: .*",
    ),
    "model that is a pickle": (
        lambda at: [f"model={_model(at, without='model.safetensors', **{'pytorch_model.bin': ''})}"],
        r"model: .*/m: safetensors weights are needed, and pytorch_model.bin is a pickle, which is never loaded.*",
    ),
    "model with code of its own": (
        lambda at: [f"model={_model(at, **{'config.json': OWN_CODE})}"],
        r"model: .*/m: it needs code of its own \(auto_map in config.json\), which is never run",
    ),
    "model whose config is broken": (
        lambda at: [f"model={_model(at, **{'config.json': '{'})}"],
        r"model: .*config.json: not readable as JSON.*",
    ),
    "model without tokenizer": (
        lambda at: [f"model={_model(at, without='tokenizer.json')}"],
        r"model: .*/m: no tokenizer.json there; a fast tokenizer is needed",
    ),
    "tokenizer that is none": (
        lambda at: [f"model={_model(at, **{'tokenizer.json': NO_TOKENIZER})}"],
        r".*tokenizer.json: not a tokenizer: .*",
    ),
    "tokenizer without chat template": (
        lambda at: [f"model={_model(at)}"],
        r"data.renderer: .*/m' has no chat template; choose one of .*role_colon.*",
    ),
    "unknown renderer option": (
        lambda at: [
            f"model={_model(at, **{'tokenizer_config.json': _TEMPLATE})}",
            "data.renderer=role_colon",
            "data.renderer_options={colour: red}",
        ],
        r"data.renderer_options: role_colon: .*colour.*",
    ),
    "weights file that is no GGUF": (
        lambda at: [f"model={_file(at, 'model.bin', 'x')}"],
        r"model: .*model.bin: a file must be a .gguf; .*",
    ),
    "a GPU where there is none": (
        lambda at: ["engine.device=cuda"],
        r"engine.device: cuda was asked for, but torch sees no GPU here; use auto or cpu",
    ),
    "no checkpoint to go on from": (
        lambda at: [f"resume_from_checkpoint={at / 'step-00000009'}"],
        r"checkpoint.resume_from_checkpoint: .*step-00000009: there is no such checkpoint",
    ),
    "output folder that is a file": (
        lambda at: [f"output_dir={_file(at, 'runs', 'x')}"],
        r"output_dir: .*/runs: .*/runs is not a folder",
    ),
    "output folder inside a file": (
        lambda at: [f"output_dir={_file(at, 'runs', 'x') / 'a' / 'b'}"],
        r"output_dir: .*/b: .*/runs is not a folder",
    ),
    "cache that is a file": (
        lambda at: [f"cache_dir={_file(at, 'cache', 'x')}"],
        r"cache_dir: .*/cache: .*/cache is not a folder",
    ),
    "cache whose library is not installed": (
        lambda at: ["cache_dir=gs://bucket/cache"],
        r"cache_dir: gs://bucket/cache: .*gcsfs.*",
    ),
    "cache of an unknown protocol": (
        lambda at: ["cache_dir=nope://bucket/cache"],
        r"cache_dir: nope://bucket/cache: .*nope.*",
    ),
    "cache without credentials": (
        lambda at: ["cache_dir=s3://bucket/cache"],
        r"cache_dir: s3://bucket/cache: .*credentials.*",
    ),
    **{
        f"secret in {field}": (
            lambda at, field=field: [f"{field}=s3://KEY:hunter2@bucket/there"],
            rf"{field}: s3://KEY:\[redacted\]@bucket/there: it holds a secret, .*",
        )
        for field in ("dataset", "data.eval_split", "model", "cache_dir", "output_dir")
    },
    "data without credentials": (
        lambda at: ["dataset=s3://bucket/rows.jsonl"],
        r"dataset: s3://bucket/rows.jsonl: .*credentials.*",
    ),
}


@pytest.fixture(autouse=True)
def _nobody_in_particular(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, and none to be asked for on the network."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def _complaints(words: list[str]) -> list[str]:
    with pytest.raises(InputError) as caught:
        check(parse_command(SFTConfig, words, "python -m flows.sft").config)
    assert caught.value.exit_status == 2
    assert isinstance(caught.value, ConfigError)
    return list(caught.value.problems)


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_named_in_one_line(case: str, tmp_path: Path) -> None:
    words, line = CASES[case]
    (found,) = _complaints(words(tmp_path))
    assert re.fullmatch(line, found), found


def test_forty_are_tried() -> None:
    assert len(CASES) >= 40


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    names = ("bad renderer", "bad scorer", "bad logger", "no data file", "no held-out file", "no model folder")
    words = [word for name in names for word in CASES[name][0](tmp_path)]
    assert len(_complaints([*words, f"output_dir={_file(tmp_path, 'runs', 'x')}"])) == len(names) + 1


def test_nothing_is_wrong_with_the_defaults() -> None:
    check(SFTConfig())


def test_nothing_held_out_is_no_fault_by_itself() -> None:
    check(parse_command(SFTConfig, ["data.eval_split=0"], "sft").config)


def test_what_is_right_is_left_alone(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    config = parse_command(SFTConfig, [f"model={tiny_model}", f"dataset={rows_file}", "output_dir=a/b"], "sft").config
    check(config)
    assert not (tmp_path / "a").exists()


def test_names_of_a_hub_are_not_looked_for_before_the_run() -> None:
    check(parse_command(SFTConfig, ["model=owner/model-1.5B", "dataset=owner/rows"], "sft").config)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*words: str, python: tuple[str, ...] = ("-m", "flows.sft")) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *python, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_a_misspelt_field_is_answered_at_once(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    _file(tmp_path, "sft.yaml", "seed: 1\ntrain:\n  num_train_epoch: 3\n")
    done = command("--config", "sft.yaml", "modle=x", python=("-c", ANSWER))
    assert (done.returncode, done.stdout) == (2, "")
    *lines, heavy = done.stderr.splitlines()
    assert heavy == "loaded:"
    assert lines == [
        "error: sft.yaml:3: train.num_train_epoch: unknown; did you mean num_train_epochs?",
        "error: command line: modle: unknown; did you mean model?",
    ]


def test_what_is_found_while_the_server_starts_ends_alike(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command("dataset=no.jsonl", "data.renderer=no")
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(":")[:2] for line in done.stderr.splitlines()] == [
        ["error", " data.renderer"],
        ["error", " dataset"],
    ]


ANSWER = """
import os, sys
from flows import command

def end(server, status):
    sys.stdout.flush()
    heavy = [name for name in ("torch", "prefect", "transformers", "datasets") if name in sys.modules]
    print("loaded:", *heavy, file=sys.stderr, flush=True)
    os._exit(status)

command._end = end
command.sft()
"""


def test_help_is_short_and_loads_nothing_heavy(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("--help", python=("-c", ANSWER))
    lines = done.stdout.splitlines()
    assert len(lines) < 60
    assert any("train.learning_rate" in line or "learning_rate" in line for line in lines)
    assert (done.returncode, done.stderr) == (0, "loaded:\n")


def test_help_of_the_real_command(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) < 60


def test_schema_is_the_configurations(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("--schema")
    assert json.loads(done.stdout) == SFTConfig.model_json_schema()


def test_a_broken_model_is_told_from_a_missing_one(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "copy")
    check(parse_command(SFTConfig, [f"model={folder}"], "sft").config)
    (folder / "tokenizer.json").write_text("{")
    (found,) = _complaints([f"model={folder}"])
    assert "tokenizer.json" in found
