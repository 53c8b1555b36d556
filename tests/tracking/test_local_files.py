"""The trackers that write files here: read back by their own readers, whole after any end, no step twice."""

import csv
import dataclasses
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.adapters.loggers.csv_file import CSVLogger
from crucible_train.adapters.loggers.tensorboard_events import FOLDER_VARIABLE, TensorBoardLogger
from crucible_train.ports import LoggedArtifact, RunInfo

PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001"
    "a5f645400000000049454e44ae426082"
)


def info(run_dir: Path, tracker_id: str = "run-1") -> RunInfo:
    return RunInfo("run", run_dir, {}, 10, 0, tracker_id=tracker_id)


def read_csv(path: Path) -> list[tuple[int, dict[str, float]]]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [(int(row.pop("step")), {k: float(v) for k, v in row.items() if v}) for row in rows]


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


STEPS = st.lists(
    st.dictionaries(
        st.sampled_from(["train/loss", "eval/nll", "time/s", "eval/a,b", 'reward/"x"']),
        st.floats(allow_nan=False, allow_infinity=False),
        min_size=1,
    ),
    max_size=12,
)


@given(STEPS, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_any_numbers_are_read_from_the_csv_file_bit_for_bit(tmp_path_factory, steps, flush_every):
    folder = tmp_path_factory.mktemp("run")
    logger = CSVLogger()
    logger.start(info(folder))
    for step, values in enumerate(steps):
        for name, value in values.items():
            logger.log_metrics({name: value}, step)
            if flush_every and step % flush_every == 0:
                logger.flush()
    path = logger.path
    logger.finish("done")
    logger.finish("done")
    if steps:
        assert read_csv(path) == list(enumerate(steps))
        assert CSVLogger().start(info(folder)).last_step == len(steps) - 1


def test_a_torn_row_is_taken_away_and_its_step_may_come_again(tmp_path):
    draw = random.Random(0)
    for _ in range(30):
        folder = tmp_path / str(draw.random())
        logger = CSVLogger()
        logger.start(info(folder))
        for step in range(5):
            logger.log_metrics({"train/loss": draw.random()}, step)
            logger.flush()
        path = logger.path
        whole = path.read_bytes()
        path.write_bytes(whole[: draw.randrange(whole.index(b"\n") + 1, len(whole))])
        again = CSVLogger()
        last_step = again.start(info(folder)).last_step
        assert -1 <= last_step < 5
        for step in range(last_step + 1, 7):
            again.log_metrics({"train/loss": step / 7, "eval/nll": 1.0}, step)
        again.finish("done")
        assert [step for step, _ in read_csv(path)] == list(range(7))


def test_a_table_becomes_a_file_beside_the_metrics(tmp_path):
    logger = CSVLogger()
    logger.start(info(tmp_path))
    logger.log_table("eval/before_after", ["name", "after"], [["nll", 1.5], ["a\n,b", None]], 4)
    (path,) = tmp_path.rglob("eval-before_after-4.csv")
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "after"], ["nll", "1.5"], ["a\n,b", ""]]


def test_tensorboard_reads_every_number_at_its_step(tmp_path):
    run_dir = tmp_path / "run"
    logger = TensorBoardLogger()
    assert logger.start(info(run_dir)).last_step == -1
    values = {step: math.sin(step) for step in range(200)}
    for step, value in values.items():
        logger.log_metrics({"train/loss": value}, step)
        logger.log_metrics({"time/step_s": value * 2}, step)
    logger.finish("done")
    logger.finish("done")
    found = read_tensorboard(tmp_path / "tensorboard" / "run-1")
    assert found["train/loss"] == [(step, float(np.float32(value))) for step, value in values.items()]
    assert found["time/step_s"] == [(step, float(np.float32(value * 2))) for step, value in values.items()]


def test_an_event_file_that_was_torn_is_gone_on_with_and_no_step_is_there_twice(tmp_path):
    draw = random.Random(1)
    for trial in range(6):
        run_dir = tmp_path / str(trial) / "run"
        logger = TensorBoardLogger()
        logger.start(info(run_dir))
        for step in range(20):
            logger.log_metrics({"train/loss": float(step), "eval/nll": 1.0}, step)
        logger.flush()
        folder = run_dir.parent / "tensorboard" / "run-1"
        (path,) = folder.iterdir()
        whole = path.read_bytes()
        path.write_bytes(whole[: draw.randrange(len(whole))])
        again = TensorBoardLogger()
        last_step = again.start(info(run_dir)).last_step
        assert -1 <= last_step < 20
        for step in range(last_step + 1, 30):
            again.log_metrics({"train/loss": float(step), "eval/nll": 1.0}, step)
        again.finish("done")
        for tag in ("train/loss", "eval/nll"):
            assert [step for step, _ in read_tensorboard(folder)[tag]] == list(range(30))


def test_tensorboard_takes_settings_texts_tables_pictures_and_artifacts(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "elsewhere"))
    picture = tmp_path / "loss.png"
    picture.write_bytes(PICTURE)
    logger = TensorBoardLogger()
    logger.start(info(tmp_path / "run"))
    logger.log_hparams({"seed": 0, "run_name": None, "peft.use_peft": True, "train.learning_rate": 1e-4})
    logger.log_text("sample", "[x](y)\nline", 3)
    logger.log_table("eval/before_after", ["name", "n"], [["a|b", 1.5], ["c", None]], 4)
    logger.log_image("report/loss", picture, 4)
    logger.log_artifact(LoggedArtifact("gsm8k", "dataset", is_input=True, digest="ab" * 32, facts={"num_rows": 9}))
    logger.finish("done")
    found = EventAccumulator(str(tmp_path / "elsewhere" / "run-1"))
    found.Reload()
    (text,) = found.Tensors("sample")
    assert text.step == 3
    assert text.tensor_proto.string_val[0] == b"    [x](y)\n    line\n"
    (table,) = found.Tensors("eval/before_after")
    assert table.tensor_proto.string_val[0].decode().splitlines()[2:] == ["| a\\|b | 1.5 |", "| c |  |"]
    (image,) = found.Images("report/loss")
    assert image.encoded_image_string == PICTURE
    (artifact,) = found.Tensors("input/gsm8k")
    assert b'"num_rows": 9' in artifact.tensor_proto.string_val[0]
    assert found.PluginTagToContent("hparams")


@pytest.mark.parametrize("make", [CSVLogger, TensorBoardLogger])
def test_another_run_has_files_of_its_own(make, tmp_path):
    for tracker_id in ("run-1", "run-2"):
        logger = make()
        assert logger.start(info(tmp_path / "run", tracker_id)).last_step == -1
        logger.log_metrics({"train/loss": 1.0}, 0)
        logger.finish("done")
        again = make()
        assert again.start(dataclasses.replace(info(tmp_path / "run", tracker_id), first_step=1)).last_step == 0
        again.finish("done")
