"""A file of Neptune's client goes on to MLflow and JSONL: every metric once, in order, at its step; settings too."""

import shutil
import sqlite3

import pytest

from crucible_train.adapters.loggers.neptune_file import NeptuneLogger
from crucible_train.journal import read_events, read_run
from crucible_train.metrics_file import read_metrics
from crucible_train.ports import RunInfo
from crucible_train.tracking.command import main

NAMES = ("train/loss", "perf/tokens_per_second")


def neptune_run(folder, tracker_id="run-0123abcd"):
    """A run of two starts, so of two files."""
    run_dir = folder / "theirs" / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    for last in (3, 6):
        logger = NeptuneLogger()
        logger.start(RunInfo("run", run_dir, {}, 6, 0, tracker_id=tracker_id, name="mine", project="sums", tags=["a"]))
        logger.log_hparams({"optim.lr": 0.5, "seed": last, "hub_token": "hunter2hunter2", "peft.use_peft": True})
        for step in range(1, last + 1):
            logger.log_metrics({NAMES[0]: step / 4, NAMES[1]: 8.0 + step}, step)
        logger.finish("done")
    return run_dir.parent / "neptune" / tracker_id


EXPECTED = [{"step": step, NAMES[0]: step / 4, NAMES[1]: 8.0 + step} for step in range(1, 7)]


def test_a_run_of_two_files_is_in_jsonl_and_mlflow_whole(tmp_path, migrated_database, monkeypatch, capsys):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place, into = neptune_run(tmp_path), tmp_path / "runs" / "theirs"
    into.parent.mkdir()
    shutil.copyfile(migrated_database, tmp_path / "runs" / "mlflow.db")
    assert main(["export", str(place), "--to", "jsonl", "--to", "mlflow", "--into", str(into)]) == 0
    assert "6 steps and" in capsys.readouterr().out
    assert read_metrics(into) == EXPECTED
    (event,) = read_events(into)
    assert (event["values"]["optim.lr"], event["values"]["seed"]) == (0.5, 6)
    assert (event["values"]["peft.use_peft"], event["values"]["hub_token"]) == (True, "[redacted]")
    told = read_run(into).info
    assert (told.name, told.project, tuple(told.tags)) == ("mine", "sums", ("a",))

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("sums").experiment_id])
    for name in NAMES:
        sent = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert sent == [(record["step"], record[name]) for record in EXPECTED]
    assert (run.info.run_name, run.data.params["optim.lr"], run.data.params["seed"]) == ("mine", "0.5", "6")
    assert "hunter2" not in str(run.data)


def test_one_file_and_the_folder_at_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = min(neptune_run(tmp_path).rglob("run_operations.sqlite3"), key=lambda path: path.stat().st_mtime_ns)
    assert main(["export", str(first), "--to", "jsonl"]) == 0
    made = tmp_path / "runs" / "run-0123abcd"
    assert read_metrics(made) == EXPECTED[:3]
    assert main(["export", str(first), "--to", "jsonl"]) == 0  # again: nothing changes
    assert read_metrics(made) == EXPECTED[:3]
    assert main(["export", str(first.parents[1]), "--to", "jsonl"]) == 2  # other steps
    assert read_metrics(made) == EXPECTED[:3]


def test_numbers_that_are_not_finite_are_left_out_and_told_of(tmp_path, monkeypatch, capsys):
    from neptune_scale import Run

    monkeypatch.setenv("NEPTUNE_SKIP_NON_FINITE_METRICS", "false")
    theirs = Run(
        run_id="t", project="w/p", mode="offline", log_directory=tmp_path / "n", enable_console_log_capture=False
    )
    theirs.log_metrics({"loss": 1.5, "acc": 0.25}, step=0)
    theirs.add_tags(["x", "y"])
    theirs.remove_tags(["y"])
    theirs.close()
    (file,) = (tmp_path / "n").rglob("run_operations.sqlite3")
    from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import UpdateRunSnapshot

    with sqlite3.connect(file) as database:  # the client takes no such number; a file from elsewhere may hold one
        found = database.execute("SELECT sequence_id, operation FROM run_operations WHERE operation_type = 0")
        all_of_it = [(number, UpdateRunSnapshot.FromString(held)) for number, held in found.fetchall()]
        ((number, changed),) = [(number, one) for number, one in all_of_it if "acc" in one.append]
        changed.append["acc"].float64 = float("nan")
        database.execute(
            "UPDATE run_operations SET operation = ? WHERE sequence_id = ?", (changed.SerializeToString(), number)
        )
    assert main(["export", str(file), "--to", "jsonl", "--into", str(tmp_path / "run")]) == 0
    assert "1 numbers that are not finite are left out" in capsys.readouterr().out.replace("\n", " ")
    assert read_metrics(tmp_path / "run") == [{"step": 0, "loss": 1.5}]
    assert tuple(read_run(tmp_path / "run").info.tags) == ("x",)


@pytest.mark.parametrize("words", [["--to", "jsonl"], ["--to", "csv", "--into", "x"]])
def test_what_makes_no_sense_for_a_run_directory_is_refused(make_run, words, capsys):
    run = make_run(())
    run.steps(0, 3)
    run.metrics.finish("done")
    assert main(["export", str(run.dir), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words[-2]}: ")


def test_files_of_two_runs_and_other_files_are_refused(tmp_path, capsys):
    neptune_run(tmp_path)
    place = neptune_run(tmp_path, "run-other")
    assert main(["export", str(place.parent), "--to", "jsonl", "--into", str(tmp_path / "x")]) == 2
    assert "files of 2 runs; name one of them" in capsys.readouterr().err
    (tmp_path / "text").write_text("no database, but long enough to be taken for one" * 40)
    assert main(["export", str(tmp_path / "text"), "--to", "jsonl", "--into", str(tmp_path / "x")]) == 2
    assert "is not a file of Neptune's client" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
