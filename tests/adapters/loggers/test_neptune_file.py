"""Neptune's file: it holds every metric once, in order, and is read back without a service."""

import sqlite3

import pytest

from crucible_train.adapters.loggers.neptune_file import NeptuneLogger
from crucible_train.adapters.loggers.neptune_reading import FILE, read_neptune_file, read_neptune_run
from crucible_train.ports import Opened


def test_every_metric_is_read_back_once_and_a_run_goes_on(run_info):
    runs = [run_info("a"), run_info("b")]
    for last, held in ((3, -1), (6, 3), (6, 6)):
        for run in runs:
            logger = NeptuneLogger()
            assert logger.start(run).last_step == held
            for step in range(1, last + 1):
                logger.log_metrics({"train/loss": step / 4}, step)
                logger.log_metrics({"perf/tokens_per_second": 8.0}, step)
                if step % 2 == 0:
                    logger.flush()
            logger.log_hparams({"optim.lr": 0.5, "seed": 7, "resume": None})
            logger.finish("done")
            logger.finish("done")
    for run in runs:
        files = sorted((run.run_dir.parent / "neptune" / run.tracker_id).glob("*/run_operations.sqlite3"))
        shown = [row for file in files for row in read_neptune_file(file)]
        assert shown == [(step, {"train/loss": step / 4, "perf/tokens_per_second": 8.0}) for step in range(1, 7)]


def test_a_flushed_step_is_on_disk_while_the_run_is_open(run_info):
    run = run_info()
    logger = NeptuneLogger()
    logger.start(run)
    logger.log_metrics({"train/loss": 0.5}, 1)
    logger.flush()
    (file,) = run.run_dir.parent.glob("neptune/*/*/run_operations.sqlite3")
    assert list(read_neptune_file(file)) == [(1, {"train/loss": 0.5})]
    logger.finish("interrupted")


def test_a_file_that_a_kill_left_without_its_tables_is_no_hindrance(run_info, capsys):
    run = run_info()
    place = run.run_dir.parent / "neptune" / run.tracker_id
    for name, made in (("a", ""), ("b", "CREATE TABLE run_operations (x)"), ("z", "")):
        (place / name).mkdir(parents=True)
        sqlite3.connect(place / name / FILE).execute(made).connection.close()
    assert NeptuneLogger().start(run) == Opened(None, -1, is_new=True)
    logger = NeptuneLogger()
    logger.start(run)
    logger.log_metrics({"train/loss": 0.5}, 1)
    logger.finish("interrupted")
    assert capsys.readouterr().err == ""
    assert NeptuneLogger().start(run) == Opened(None, 1, is_new=False)
    assert read_neptune_run(place).steps == [(1, {"train/loss": 0.5})]

    (place / "z" / FILE).write_text("no database, but long enough to be taken for one" * 40)
    assert NeptuneLogger().start(run) == Opened(None, 1, is_new=False)
    assert "not a file of Neptune's client: file is not a database; it is passed over" in capsys.readouterr().err


def test_what_is_no_such_file_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"is not a file$"):
        list(read_neptune_file(tmp_path / "absent"))
    (tmp_path / "text").write_text("no database, but long enough to be taken for one" * 40)
    with pytest.raises(ValueError, match="not a file of Neptune's client: file is not a database"):
        list(read_neptune_file(tmp_path / "text"))
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(ValueError, match="not a file of Neptune's client: no such table"):
        list(read_neptune_file(tmp_path / "other"))
