"""``python -m flows.rl``: what it prints and leaves, what it does again, what it refuses, and how it is stopped."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import ROOT, run_once

ORDER = ["prepare model", "evaluate before", "train", "evaluate after", "package"]
FOUND, MADE = "Cached", "Completed"
WORDS = (
    "cache_dir=cache",
    "report_to=[console]",
    "env.options={num_held_out: 4}",
    "rollout.max_tokens=4",
    "rollout.temperature=30",
    "rollout.top_k=4",
    "train.max_steps=8",
    "train.groups_per_batch=2",
    "train.num_generations=2",
    "train.learning_rate=1e-3",
    "eval.num_step_problems=2",
    "engine.precision=float32",
    "engine.num_threads=1",
)


def _of_digits(model: Path, folder: Path) -> Path:
    """The tiny model, made to write digits and to stop: so rewards differ within a group, and training trains."""
    from safetensors.numpy import load_file, save_file

    from crucible_train.renderers import FastTokenizer

    shutil.copytree(model, folder)
    tokenizer = FastTokenizer.from_folder(folder)
    weights = load_file(folder / "model.safetensors")
    embeddings = weights["model.embed_tokens.weight"]
    digits = [int(tokenizer.encode(digit)[0]) for digit in "0123456789"]
    embeddings[digits] *= 60
    # what has the largest norm along either direction is likeliest: a digit and the end share each
    embeddings[digits[8]], embeddings[digits[9]] = -embeddings[digits[7]], -embeddings[digits[7]]
    embeddings[tokenizer.control_tokens["<|im_end|>"]] = embeddings[digits[7]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Any, Any]:
    """The first run, with a temporary server of its own. Not to be changed."""

    def prepare(place: Path) -> tuple[str, ...]:
        return (f"model={_of_digits(tiny_model, place / 'tiny-llama')}", *WORDS)

    return run_once(tmp_path_factory, "played", "RL", prepare)


@pytest.fixture
def run_dir(played: Any) -> Path:
    return played[0].run_dir


@pytest.fixture
def place(played: Any, tmp_path: Path) -> Any:
    """The finished run's cache, and nothing else."""
    return played[0].copy(tmp_path)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_console_is_short_and_plain_and_ends_with_the_report(played: Any, run_dir: Path) -> None:
    _, ended = played
    assert len(ended.out.splitlines()) <= 25
    assert "\x1b" not in ended.out
    assert ended.err == ""
    assert ended.out.splitlines()[-1].split() == ["report", f"runs/{run_dir.name}/report.html"]


def test_run_folder_holds_what_is_promised(run_dir: Path) -> None:
    names = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*")}
    assert names >= {
        "config.json",
        "record.json",
        "metrics.jsonl",
        "checkpoints.jsonl",
        "checkpoints/step-00000008/manifest.json",
        "rollouts/step-00000008.json",
        "eval/results.jsonl",
        "eval/summary.json",
        "report.html",
        "logtree.html",
        "logtree.json",
        "trace.json",
        "model/adapter_model.safetensors",
        "model/tokenizer.json",
        "model/README.md",
    }
    assert not [name for name in names if ".tmp-" in name]
    assert set(json.loads((run_dir / "record.json").read_text())["artifacts"]) == {
        "model",
        "before",
        "trained",
        "after",
        "package",
    }


def test_every_step_is_recorded_once_and_some_trained(run_dir: Path) -> None:
    records = _lines(run_dir / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(9))
    assert sum(record["train/num_groups"] for record in records[1:]) > 0
    assert "eval/reward" in records[0]
    assert "eval/reward" in records[-1]


def test_both_sides_are_played_on_every_held_out_problem(run_dir: Path) -> None:
    rows = _lines(run_dir / "eval" / "results.jsonl")
    assert [(row["model"], row["row"]) for row in rows] == [(side, n) for side in ("before", "after") for n in range(4)]
    compared = json.loads((run_dir / "eval" / "summary.json").read_text())["compared"]
    assert [row["name"] for row in compared] == ["reward", "correct", "format"]


def test_the_timeline_is_one_that_perfetto_opens(run_dir: Path) -> None:
    events = json.loads((run_dir / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {"sample", "evaluate"} <= {span["name"] for span in spans if span["cat"] == "training"}
    assert all(span["dur"] >= 0 and span["ts"] >= 0 for span in spans)


def test_pages_need_nothing_but_each_other(run_dir: Path) -> None:
    for name in ("report.html", "logtree.html"):
        text = (run_dir / name).read_text(encoding="utf-8")
        assert "<script" not in text
        assert not re.search(r"""(src|href)=["']?https?:""", re.sub(r"<a [^>]*>", "", text))
    assert "arithmetic: " in (run_dir / "logtree.html").read_text(encoding="utf-8")


def test_the_same_command_again_changes_no_byte(played: Any, start: Callable[..., Any], server: str) -> None:
    place, first = played

    def tree() -> dict[str, tuple[bytes, int]]:
        files = (path for path in place.run_dir.rglob("*") if path.is_file())
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = tree()
    ended = start(place.words, place.folder, "flows.rl", PREFECT_API_URL=server).end()
    assert (ended.status, ended.err) == (0, "")
    assert tree() == before
    assert "this run was finished before; nothing was changed" in ended.out
    assert ended.out.splitlines()[-1] == first.out.splitlines()[-1]


def test_what_is_done_again_is_what_a_change_reaches(place: Any, run_flow: Callable[[Any], Any]) -> None:
    again = run_flow(place.config())
    assert again.tasks == [(name, FOUND) for name in ORDER]

    # nothing is played while it trains, so that how held-out problems are answered is no matter of the training
    changes = ("train.learning_rate=2e-3", "train.max_steps=1", "eval.num_step_problems=0")
    faster = run_flow(place.config(*changes))
    assert faster.tasks == [(name, FOUND if name in ORDER[:2] else MADE) for name in ORDER]

    warmer = run_flow(place.config(*changes, "eval.temperature=0.5"))
    assert warmer.tasks == [(name, FOUND if name in ("prepare model", "train") else MADE) for name in ORDER]


def test_the_plan_of_a_finished_run_finds_all_of_it(
    place: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crucible_train import terminal, wiring
    from crucible_train.stages.rl.plan import show_plan
    from crucible_train.types import Estimate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wiring, "estimate", lambda *_: Estimate(16, 10**6, 10**5, 1234.0, 3e3, 0.5, 2**31))
    monkeypatch.setattr(terminal, "_console", None)
    show_plan(place.config())
    text = capsys.readouterr().out
    assert [state for name in ORDER[1:] for state in re.findall(rf"{name} +(cached|to run)\n", text)] == ["cached"] * 4
    assert not (tmp_path / "runs").exists()


def test_what_was_gained_is_on_the_flow_runs_page(place: Any, run_flow: Callable[[Any], Any], server: str) -> None:
    run = run_flow(place.config())
    body = json.dumps({"artifacts": {"flow_run_id": {"any_": [str(run.id)]}}}).encode()
    request = urllib.request.Request(f"{server}/artifacts/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found = {artifact["key"]: artifact for artifact in json.load(answer)}
    assert found.keys() == {"rl-summary", "rl-reward", "rl-samples"}
    assert "| reward |" in found["rl-summary"]["data"]
    assert found["rl-reward"]["data"].startswith("data:image/png;base64,iVBOR")
    rows = json.loads(found["rl-samples"]["data"])
    assert len(rows) == 4
    assert rows[0].keys() == {"problem", "before", "reward before", "after", "reward after"}


def test_ctrl_c_in_training_saves_and_the_same_command_goes_on(
    played: Any, start: Callable[..., Any], server: str, states: Callable[[str], list[str]], tmp_path: Path
) -> None:
    words = (*played[0].copy(tmp_path, "train_rl", "package_rl").words, f"run_name={tmp_path.name}")
    running = start(words, module="flows.rl", PREFECT_API_URL=server)
    running.wait_for("  step 2/8")
    running.signal(signal.SIGINT)
    stopped = running.end()
    assert (stopped.status, stopped.err) == (130, "")
    assert "saved at step" in stopped.out
    assert stopped.out.splitlines()[-2] == "stopped    what was done is saved; to go on, run the same command again:"
    assert stopped.out.splitlines()[-1].startswith("python -m flows.rl model=")
    again = start(words, module="flows.rl", PREFECT_API_URL=server).end()
    assert again.status == 0, again.err
    assert "goes on from step" in again.out
    assert states(tmp_path.name) == ["Cancelled", "Completed"]
    (run_dir,) = (tmp_path / "runs").iterdir()
    for name in ("metrics.jsonl", "model/adapter_model.safetensors", "eval/results.jsonl"):
        assert (run_dir / name).read_bytes() == (played[0].run_dir / name).read_bytes(), name


WRONG = {
    "env.name=chess": r"env.name: 'chess' is unknown; known are arithmetic, .*",
    "env.options={num_shot: 1}": r"env.options.num_shot: unknown; did you mean num_shots\?",
    "env.options={num_shots: 9}": r"env.options.num_shots: must be a whole number from 0 to 8, not 9",
    "schedule.mode=streamed": r"command line: algorithm.normalisation: with schedule.mode=streamed give.*",
    "algorithm.loss=grpo": r"command line: algorithm.loss: must be one of importance_sampling, .*",
    "rollout.top_k=-1": r"command line: rollout.top_k: must be a whole number of 0 or more.*",
    "rollout.min_p=2": r"command line: rollout.min_p: must be .*",
}
SECRET = ("env.name=prompts", "env.options={dataset: 'https://user:hunter2@example.org/rows.jsonl'}")
SECRET_TOLD = r"env.options.dataset: https://.*@example.org/rows.jsonl: it holds a secret, .*"


def test_wrong_input_is_one_line_each_before_torch_is_there() -> None:
    cases = [[word] for word in WRONG] + [list(SECRET)]
    code = (
        "import json, sys\n"
        "from crucible_train.config.command import parse_command\n"
        "from crucible_train.errors import ConfigError\n"
        "from crucible_train.recipes.rl import RLConfig\n"
        "from crucible_train.stages.rl.preflight import check\n"
        "told = []\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        check(parse_command(RLConfig, words, 'rl').config)\n"
        "        told.append([])\n"
        "    except ConfigError as error:\n"
        "        told.append(error.problems)\n"
        "print(json.dumps([told, 'torch' in sys.modules]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(cases)]
    told, has_torch = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    for lines, pattern in zip(told, [*WRONG.values(), SECRET_TOLD], strict=True):
        assert len(lines) == 1, lines
        assert re.fullmatch(pattern, lines[0]), lines
        assert "hunter2" not in lines[0]
    assert not has_torch


def test_wrong_input_ends_the_command_with_status_2(start: Callable[..., Any], tmp_path: Path) -> None:
    ended = start(SECRET, module="flows.rl").end()
    assert (ended.status, ended.out) == (2, "")
    assert re.fullmatch(f"error: {SECRET_TOLD}\n", ended.err)
    assert list(tmp_path.iterdir()) == []
