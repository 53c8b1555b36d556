"""Trackio: its database holds every metric once, in order, and a run begun again goes on."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from crucible_train.adapters.loggers.trackio_runs import TrackioLogger
from crucible_train.ports import RunInfo

folder = Path(sys.argv[1]) / "runs"
runs = [RunInfo(name, folder / name, {}, 9, 0, tracker_id=f"{name}-12") for name in "ab"]
for last, expected in ((3, -1), (6, 3)):  # the second start knows nothing of what the first one sent
    for run in runs:
        logger = TrackioLogger()
        assert logger.start(run).last_step == expected
        if expected == -1:
            logger.log_hparams({"seed": 7})
        for step in range(1, last + 1):
            logger.log_metrics({"train/loss": step / 4}, step)
            logger.log_metrics({"perf/tokens_per_second": 8.0}, step)
        logger.flush()
        logger.log_hparams({f"after.{last}": last})  # no step comes with these
        logger.flush()

from trackio.sqlite_storage import SQLiteStorage
for run in runs:
    shown = [(row["step"], row["train/loss"], row["perf/tokens_per_second"])
             for row in SQLiteStorage.get_logs("crucible-train", run_id=run.tracker_id)]
    assert shown == [(step, step / 4, 8.0) for step in range(1, 7)], shown
    config = SQLiteStorage.get_run_config("crucible-train", run.run_id, run_id=run.tracker_id)
    assert (config["seed"], config["after.3"], config["after.6"]) == (7, 3, 6), config
assert (folder / "trackio").is_dir()
"""


def test_every_step_is_in_the_database_once_and_a_run_goes_on(tmp_path):
    """In a process of its own: the library keeps the folder it found when it was imported."""
    env = {key: value for key, value in os.environ.items() if key != "TRACKIO_DIR"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, env=env | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
