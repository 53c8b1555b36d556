"""Tags, and the end of a run directory: only a run goes, only from its folder, only when it is meant."""

import json
from pathlib import Path

import pytest

from crucible_train.runs.__main__ import main
from crucible_train.runs.reading import Run


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_tags_come_and_go(make_run, capsys) -> None:
    folder = make_run("sft-a")
    assert main(("tag", "sft-a", "good", "baseline", "good")) == 0
    assert json.loads((folder / "tags.json").read_text()) == ["baseline", "good"]
    assert main(("list",)) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("baseline good")
    assert main(("untag", "runs/sft-a", "good")) == 0
    assert Run(folder).tags == ["baseline"]
    assert "its tags are baseline" in _refusal(capsys, "untag", "sft-a", "good")


@pytest.mark.parametrize("tag", ["", "two words", "a,b", "\x1b[2J", "x" * 65, "-x"])
def test_a_tag_is_a_word(tag: str, make_run, capsys) -> None:
    folder = make_run("sft-a")
    assert "tag" in _refusal(capsys, "tag", "sft-a", "--", tag)
    assert not (folder / "tags.json").exists()


def test_torn_tags_are_not_written_over(make_run, capsys) -> None:
    folder = make_run("sft-a")
    (folder / "tags.json").write_text('["go')
    assert "tags.json" in _refusal(capsys, "tag", "sft-a", "good")
    assert (folder / "tags.json").read_text() == '["go'


def test_runs_are_deleted_together(make_run) -> None:
    first, second, third = (make_run(name) for name in ("sft-a", "sft-b", "sft-c"))
    assert main(("delete", "sft-a", "runs/sft-b", "runs/../runs/sft-a", "--yes")) == 0
    assert (first.exists(), second.exists(), third.exists()) == (False, False, True)


def test_one_that_may_not_go_keeps_all(make_run, tmp_path: Path, capsys) -> None:
    first = make_run("sft-a")
    (tmp_path / "runs" / "notes").mkdir()
    assert "it is no run" in _refusal(capsys, "delete", "sft-a", "notes", "--yes")
    assert first.is_dir()


def test_a_link_is_not_followed(make_run, tmp_path: Path, capsys) -> None:
    run = make_run("sft-a")
    elsewhere = run.rename(tmp_path / "elsewhere")
    run.symlink_to(elsewhere)
    for name in ("sft-a", "runs/sft-a", "runs/sft-a/"):
        assert "it is a link" in _refusal(capsys, "delete", name, "--yes")
    assert "does not lie in runs" in _refusal(capsys, "delete", "runs/sft-a/../elsewhere", "--yes")
    assert is_whole(elsewhere)


def test_what_lies_elsewhere_stays(make_run, tmp_path: Path, capsys) -> None:
    make_run("sft-a")
    outside = make_run("sft-b").rename(tmp_path / "sft-b")
    for name in (str(outside), "sft-b", "runs/../sft-b"):
        assert "does not lie in runs; say --folder" in _refusal(capsys, "delete", name, "--yes")
    assert is_whole(outside)
    assert main(("delete", "sft-b", "--folder", ".", "--yes")) == 0
    assert not outside.exists()


def test_the_folder_of_runs_is_no_run(make_run, tmp_path: Path, capsys) -> None:
    run = make_run("sft-a")
    for name in ("runs", ".", "", str(tmp_path / "runs")):
        assert "it is no run" in _refusal(capsys, "delete", name, "--yes")
    assert is_whole(run)


def test_nobody_to_ask(make_run, command) -> None:
    run = make_run("sft-a")
    done = command("delete", "sft-a")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "--yes" in done.stderr
    assert is_whole(run)


def test_an_answer_decides(make_run, asked) -> None:
    run = make_run("sft-a")
    status, said = asked(b"\n", "delete", "sft-a")
    assert (status, is_whole(run)) == (0, True)
    assert "nothing was deleted" in said
    status, said = asked(b"yes\n", "delete", "sft-a")
    assert (status, run.exists()) == (0, False)


def is_whole(run: Path) -> bool:
    return {"config.json", "metrics.jsonl", "record.json"} <= {path.name for path in run.iterdir()}
