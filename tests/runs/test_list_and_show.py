"""What runs there are, and what is known of one: whole, unfinished and torn."""

import json
import os
import time
from pathlib import Path

import pytest

from crucible_train.config.base import Section
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.recipes.sft import SFTConfig
from crucible_train.runs.__main__ import main
from crucible_train.runs.reading import Run, find_runs, is_run


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(words) == 0
    return capsys.readouterr().out.splitlines()


def _row(lines: list[str], name: str) -> list[str]:
    (line,) = [line for line in lines if line.split()[:1] == [name]]
    return line.split()


def test_a_line_a_run(make_run, capsys) -> None:
    make_run("sft-a", losses=(3.0, 2.5, 1.0))
    make_run("sft-b", is_done=False)
    lines = _lines(capsys, "list")
    assert len(lines) == 3
    assert " ".join(_row(lines, "sft-a")[1:]) == "sft tiny rows.jsonl done 3 nll 4 -> 2 2026-11-30 06:20"
    assert " ".join(_row(lines, "sft-b")[1:]) == "sft tiny rows.jsonl unfinished 2 nll 4 -> 3 -"


def test_the_newest_is_last(make_run, tmp_path: Path) -> None:
    for age, name in enumerate(("sft-new", "sft-old")):
        for path in make_run(name).glob("*.json*"):
            os.utime(path, (time.time() - 100 * age,) * 2)
    assert [run.run_id for run in find_runs(tmp_path / "runs")] == ["sft-old", "sft-new"]


def test_what_lies_beside_the_runs_is_none(make_run, tmp_path: Path) -> None:
    run = make_run("sft-a")
    (tmp_path / "runs" / "tensorboard").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(b"SQLite")
    begun = tmp_path / "runs" / "begun"
    begun.mkdir()
    (begun / "config.json").write_text((run / "config.json").read_text())
    assert [found.path for found in find_runs(tmp_path / "runs")] == [run]
    (begun / "checkpoints").mkdir()
    assert is_run(begun)
    (begun / "config.json").write_text("{}")
    assert not is_run(begun)


def test_an_empty_folder_says_so(tmp_path: Path, capsys) -> None:
    (tmp_path / "runs").mkdir()
    assert _lines(capsys, "list") == ["runs: no runs lie there"]


@pytest.mark.parametrize(
    ("method", "recipe"), [("sft", SFTConfig), ("dpo", DPOConfig), ("rl", RLConfig), ("distill", DistillConfig)]
)
def test_a_method_is_known_by_its_fields(method: str, recipe: type[Section], make_run) -> None:
    folder = make_run("any")
    fields = dict.fromkeys(recipe.model_fields) | {"model": "m"}
    (folder / "config.json").write_text(json.dumps(fields))
    assert Run(folder).method == method
    del fields["report_to"]  # as a run wrote it before the field was there
    (folder / "config.json").write_text(json.dumps(fields))
    assert Run(folder).method == method
    (folder / "config.json").write_text(json.dumps(fields | {"of another program": 1}))
    assert Run(folder).method == "?"


TORN = ("config.json", "record.json", "metrics.jsonl", "timings.jsonl", "eval/summary.json", "tags.json")


@pytest.mark.parametrize("file", TORN)
@pytest.mark.parametrize("rest", [b"", b'{"step": 1', b"[1, 2]", b"null", b"\xff\xfe", b'"\\ud800'])
def test_a_torn_file_stops_nothing(file: str, rest: bytes, make_run, capsys) -> None:
    folder = make_run("sft-a")
    (folder / file).write_bytes(rest)
    make_run("sft-b")
    lines = _lines(capsys, "list")
    assert _row(lines, "sft-b")[4] == "done"
    assert _row(lines, "sft-a")[4] == ("unfinished" if file == "record.json" else "done")
    assert "sft-a" in _lines(capsys, "show", "sft-a")[0]


def test_a_torn_last_line_costs_that_line(make_run) -> None:
    folder = make_run("sft-a", is_done=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')
    assert Run(folder).num_steps == 2
    assert Run(folder).final_metrics["train/loss"] == 2.0


def test_show_tells_all_that_is_known(make_run, capsys) -> None:
    folder = make_run("sft-a", "learning_rate=0.5", "seed=7")
    (folder / "tracking").mkdir()
    cursor = {"tracker_id": "x", "url": "http://here/1", "last_step": 2, "state": "finished", "problem": None}
    (folder / "tracking" / "mlflow.json").write_text(json.dumps(cursor))
    (folder / "tracking" / "run.json").write_text('{"tracker_id": "x"}')
    (folder / "report.html").write_text("")
    lines = [line.split() for line in _lines(capsys, "show", "runs/sft-a")]
    for line in (
        "train.learning_rate 0.5",
        "seed 7",
        "nll 4 3 better",
        "eval/nll 3",
        "train/loss 2",
        "model 1,234 abababababab file:///a",
        "mlflow finished 2 http://here/1 -",
        "report runs/sft-a/report.html",
        "took 2.5 s",
    ):
        assert line.split() in lines
    names = {line[0] for line in lines if line}
    assert "train.weight_decay" not in names
    assert "run.json" not in names


def test_a_terminal_obeys_nothing_that_a_file_holds(make_run, capsys) -> None:
    folder = make_run("sft-a")
    config = json.loads((folder / "config.json").read_text()) | {"model": "a\x1b[2Jb"}
    (folder / "config.json").write_text(json.dumps(config))
    for words in (("list",), ("show", "sft-a")):
        assert "\x1b" not in "".join(_lines(capsys, *words))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("list", "nowhere"), "nowhere: there is no such folder"),
        (("show", "sft-b"), "did you mean sft-a?"),
        (("show", "."), "it is no run"),
        (("show",), "RUN"),
        ((), "COMMAND"),
        (("lisst",), "lisst"),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], part: str, make_run, capsys) -> None:
    make_run("sft-a")
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert part in line


def test_the_command_itself(make_run, command) -> None:
    make_run("sft-a")
    done = command("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    done = command("show", "no")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"list", "show", "tag", "untag", "delete"} <= set(done.stdout.split())
