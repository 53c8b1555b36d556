"""Runs side by side: where they differ, which is better, and the page with their curves."""

import json
import re
from pathlib import Path

import pytest

from crucible_train.runs.__main__ import main
from crucible_train.runs.comparing import comparison
from crucible_train.runs.reading import Run


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _best(runs: list[Path]) -> dict[str, set[int]]:
    return {row.name: set(row.best) for row in comparison([Run(run) for run in runs]).metrics}


def test_the_fields_that_differ_and_the_better_figures(make_run, capsys) -> None:
    make_run("sft-a-11", "learning_rate=0.5", "output_dir=one", losses=(3.0, 2.0))
    make_run("sft-a-22", "learning_rate=0.25", "output_dir=two", losses=(3.0, 1.0))
    assert main(("compare", "sft-a-11", "sft-a-22")) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for line in (
        "runs of sft-a-…: 11, 22",
        "field 11 22",
        "train.learning_rate 0.5 0.25",
        "eval/nll 3 2 *",
        "train/loss 2 1 *",
        "optim/learning_rate 0.1 0.1",
    ):
        assert line.split() in lines
    assert not any("output_dir" in line for line in lines)
    assert not any("held" in line for line in lines)


def test_a_run_says_which_way_its_figure_is_a_gain(make_run) -> None:
    runs = [make_run("sft-a", losses=(3.0, 2.0)), make_run("sft-b", losses=(3.0, 1.0))]
    assert _best(runs)["eval/exact"] == {1}
    for run in runs:
        summary = json.loads((run / "eval" / "summary.json").read_text())
        summary["compared"][1]["lower_is_better"] = True
        (run / "eval" / "summary.json").write_text(json.dumps(summary))
    assert _best(runs)["eval/exact"] == {0}


def test_equal_figures_and_a_schedule_have_no_better_side(make_run) -> None:
    runs = [make_run("sft-a"), make_run("sft-b")]
    assert set().union(*_best(runs).values()) == set()
    metrics = runs[1] / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"optim/learning_rate": 0.1', '"optim/learning_rate": 0.2'))
    assert set().union(*_best(runs).values()) == set()


def test_a_loss_of_another_method_is_no_measure(make_run) -> None:
    runs = [make_run("sft-a", losses=(3.0, 2.0)), make_run("rl-b", losses=(3.0, 1.0))]
    assert _best(runs)["train/loss"] == {1}
    config = json.loads((runs[1] / "config.json").read_text())
    del config["dataset"]
    (runs[1] / "config.json").write_text(json.dumps(config | {"env": {"name": "arithmetic"}, "rollout": {}}))
    assert _best(runs)["train/loss"] == set()


def test_other_examples_and_unfinished_runs_are_told(make_run, capsys) -> None:
    make_run("sft-a", "seed=1", "data.eval_split=0.5")
    make_run("sft-b", "seed=2", is_done=False)
    assert main(("compare", "sft-a", "sft-b")) == 0
    out = capsys.readouterr().out
    assert "What is held out depends on seed, data.eval_split" in out
    assert "Not finished: sft-b" in out


def test_runs_of_one_name_are_told_apart(make_run, tmp_path: Path) -> None:
    moved = make_run("sft-a").rename(tmp_path / "sft-a")
    labels = comparison([Run(moved), Run(make_run("sft-a"))]).labels
    assert list(labels) == ["sft-a (1)", "sft-a (2)"]


@pytest.mark.parametrize("words", [("sft-a",), ("sft-a", "runs/sft-a"), ("sft-a", "no")])
def test_two_runs_are_needed(words: tuple[str, ...], make_run, capsys) -> None:
    make_run("sft-a")
    assert main(("compare", *words)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_page_needs_nothing_else(make_run, tmp_path: Path) -> None:
    folder = make_run("sft-a-11", "learning_rate=0.5")
    make_run("sft-a-22", "learning_rate=0.25", losses=(3.0, 1.0))
    config = json.loads((folder / "config.json").read_text()) | {"model": "<script>alert(1)</script>"}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(("compare", "sft-a-11", "sft-a-22", "--html", "out/page.html")) == 0
    html = (tmp_path / "out" / "page.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r"<(link|img|iframe)\b|@import|url\(\s*['\"]?http", html)
    assert html.count("<svg") == 3  # nll, loss, rate: a step's time was written once, which is no curve
    assert html.count("#4063d8") > 3
    assert html.count("#d1495b") > 3
    assert re.search(r'<td class="better">2</td>', html)


@pytest.mark.parametrize("file", ["config.json", "record.json", "metrics.jsonl", "timings.jsonl", "eval/summary.json"])
@pytest.mark.parametrize("rest", [b"", b'{"step": 1', b'{"step": 1, "train/loss": "high", "eval/nll": NaN}\n'])
def test_a_torn_run_is_compared_with_what_it_has(file: str, rest: bytes, make_run, tmp_path: Path) -> None:
    (make_run("sft-a") / file).write_bytes(rest)
    make_run("sft-b")
    assert main(("compare", "sft-a", "sft-b")) == 0
    assert main(("compare", "sft-a", "sft-b", "--html", "page.html")) == 0
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_more_runs_than_colours_are_told_apart(make_run, tmp_path: Path) -> None:
    names = [f"sft-{number:02}" for number in range(12)]
    for name in names:
        make_run(name)
    assert main(("compare", *names, "--html", "page.html")) == 0
    assert "stroke-dasharray" in (tmp_path / "page.html").read_text()  # colours come again, with another line
