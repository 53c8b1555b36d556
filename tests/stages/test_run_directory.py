"""What is said at a run's end, and of what it replaces."""

import json
from pathlib import Path

import pytest

from crucible_train import terminal
from crucible_train.config.sections import EvalConfig
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import run_directory
from crucible_train.types import ArtifactRef, Hardware

HARDWARE = Hardware("cpu", "float32", 1, "CPU")


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_console", None)


def package(folder: Path, num: int, verdict: str) -> Path:
    """A package whose evaluation compared ``num`` examples."""
    compared = {
        "name": "nll",
        "num": num,
        "before": {"value": 4.787, "low": 4.787, "high": 4.787},
        "after": {"value": 1.67, "low": 1.67, "high": 1.67},
        "difference": {"value": -3.117, "low": -3.117, "high": -3.117},
        "verdict": verdict,
    }
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "summary.json").write_text(json.dumps({"compared": [compared], "after": {"metrics": {}}}))
    return folder


@pytest.mark.parametrize(
    ("num", "verdict", "line"),
    [
        (1, "one example, no interval", "change -3.117 over 1: one example, no interval"),
        (9, "better", "change -3.117, 95 % interval [-3.117, -3.117] over 9: better"),
    ],
)
def test_an_interval_is_shown_where_there_is_one(
    num: int, verdict: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_directory.report(Path("runs/x"), package(tmp_path, num, verdict), is_new=True)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"nll        4.787 -> 1.67   {line}"
    assert [row.split() for row in rest] == [["model", "runs/x/model"], ["report", "runs/x/report.html"]]


def finish(run_dir: Path, folder: Path, config: SFTConfig, digest: str) -> bool:
    ref = ArtifactRef(uri="x", sha256=digest * 64, kind="package", size=1)
    return run_directory.finish(run_dir, folder, config, {"package": ref}, HARDWARE, 1.0)


def test_a_report_that_takes_the_place_of_another_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that differ only in how answers are written share a folder."""
    folder, run_dir = package(tmp_path / "package", 9, "better"), tmp_path / "run"
    first, second = SFTConfig(), SFTConfig(eval=EvalConfig(num_samples=2, temperature=0.5))
    assert finish(run_dir, folder, first, "a")
    assert not finish(run_dir, folder, first, "a")
    assert capsys.readouterr().out == ""
    assert finish(run_dir, folder, second, "b")
    default = EvalConfig().temperature
    assert capsys.readouterr().out == (
        f"replaced   the report of the same training with eval.num_samples=null eval.temperature={default}; "
        "run it so again to have that one back\n"
    )
    assert json.loads((run_dir / "record.json").read_text())["config"]["eval"]["num_samples"] == 2


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("https://h/get?token=CANARY&f=rows.jsonl", "get"),
        ("https://h/rows.jsonl#key=CANARY/x", "rows"),
        ("https://me:CANARY@h", "me-redacted-h"),
        ("a/rows#2.jsonl", "rows-2"),
        ("org/name", "name"),
    ],
)
def test_a_run_is_not_named_by_what_follows_the_path_of_a_url(subject: str, name: str) -> None:
    assert run_directory.run_id(SFTConfig(model="a/tiny"), "sft", subject, "0" * 64) == f"sft-tiny-{name}-00000000"
    config = SFTConfig(model="s3://b/tiny?key=CANARY")
    assert run_directory.run_id(config, "sft", "x", "0" * 64) == "sft-tiny-x-00000000"


def test_code_that_changed_is_no_other_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run_dir = package(tmp_path / "package", 9, "better"), tmp_path / "run"
    finish(run_dir, folder, SFTConfig(), "a")
    assert finish(run_dir, folder, SFTConfig(), "b")
    assert capsys.readouterr().out == ""
