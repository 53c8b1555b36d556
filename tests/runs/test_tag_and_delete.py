"""Tags, and the end of a run directory: only a run goes, only from its folder, only when it is meant."""

import json
from pathlib import Path

import pytest

from crucible_train import files
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


def test_a_run_that_is_at_work_stays(make_run, capsys) -> None:
    run = make_run("sft-a")
    (run / "tracking").mkdir()
    with files.held(run):
        assert "a process works in it" in _refusal(capsys, "delete", "sft-a", "--yes")
    with files.held(run / "tracking"):
        assert "it is being sent to a tracker" in _refusal(capsys, "delete", "sft-a", "--yes")
    assert is_whole(run)
    assert main(("delete", "sft-a", "--yes")) == 0
    assert not run.exists()


def test_what_a_failed_deletion_leaves_is_no_run_and_goes_when_it_is_deleted_again(
    make_run, tmp_path: Path, capsys, monkeypatch
) -> None:
    run, other = make_run("sft-a"), make_run("b-sft-a")

    def refuse(path: Path) -> None:
        (path / "metrics.jsonl").unlink()
        raise PermissionError(13, "Permission denied", str(path / "eval"))

    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", refuse)
        assert main(("delete", "sft-a", "--yes")) == 1
    said = capsys.readouterr()
    assert "not all of it could be deleted" in said.err
    assert said.out == ""
    assert not run.exists()
    assert main(("list",)) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["b-sft-a"]
    assert main(("delete", "sft-a", "--yes")) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["b-sft-a"]
    assert is_whole(other)
    assert "there is no such run" in _refusal(capsys, "delete", "sft-a", "--yes")


def test_the_folder_of_another_program_is_no_run(tmp_path: Path, capsys) -> None:
    model = tmp_path / "runs" / "llama"
    (model / "checkpoints").mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}')
    assert "it is no run" in _refusal(capsys, "delete", "llama", "--yes")
    assert model.is_dir()
    (model / "tracking").mkdir()
    (model / "tracking" / "run.json").write_text("{}")  # a run of a recipe that is not known here
    assert main(("delete", "llama", "--yes")) == 0


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
