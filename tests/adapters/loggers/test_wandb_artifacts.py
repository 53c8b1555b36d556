"""What a run used and made arrives in W&B: versions by digest, their files, who made and used them; pictures."""

import json
from pathlib import Path

import pytest

from crucible_train.adapters.loggers import wandb_artifacts
from crucible_train.adapters.loggers.wandb_runs import WandbLogger
from crucible_train.ports import LoggedArtifact, LoggerUnavailable
from tests.adapters.loggers.conftest import sync_offline
from tests.adapters.loggers.wandb_stub import impatient
from tests.tracking.test_local_files import PICTURE

ROWS = LoggedArtifact(
    "rows.jsonl", "dataset", is_input=True, digest="a" * 64, facts={"num_rows": 3, "format": "messages"}
)
BASE = LoggedArtifact("model", "model", is_input=True, digest="b" * 64, facts={"size": 7})
FILES = {"adapter_model.safetensors": b"\x00" * 5000, "deep/config.json": b"{}"}


def adapter(folder: Path, weights: bytes = FILES["adapter_model.safetensors"]) -> LoggedArtifact:
    for name, data in (FILES | {"adapter_model.safetensors": weights}).items():
        (folder / "adapter" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "adapter" / name).write_bytes(data)
    digest = weights[:1].hex() * 32
    given = {"path": folder / "adapter", "aliases": ("latest", "best"), "facts": {"size": 5002}}
    return LoggedArtifact("adapter", "model", is_input=False, digest=digest, **given)


def log_all(logger: WandbLogger, folder: Path) -> None:
    (folder / "loss.png").write_bytes(PICTURE)
    (folder / "report.html").write_text("<p>so it went</p>")
    logger.log_metrics({"train/loss": 0.5}, 1)
    logger.log_artifact(ROWS)
    logger.log_artifact(BASE)
    logger.log_artifact(adapter(folder))
    report = {"digest": "c" * 64, "path": folder / "report.html", "aliases": ("latest",)}
    logger.log_artifact(LoggedArtifact("report", "report", is_input=False, **report))
    logger.log_artifact(LoggedArtifact("merged", "model", is_input=False, digest="d" * 64))
    logger.log_table("eval/before_after", ["name", "after"], [["nll", 0.5], ["ended", None]], 1)
    logger.log_image("report/loss", folder / "loss.png", 1)
    logger.log_text("sample", "é\n[bold]", 1)
    logger.link("input/model", "file:///cas/b")


def check_made(service, run_id: str) -> None:
    (made,) = service.artifacts.named("adapter")
    assert (made.kind, made.files, made.made_by) == ("model", FILES, run_id)
    assert made.metadata == {"kind": "model", "digest": "00" * 32, "size": 5002}
    assert {alias for (name, alias), one in service.artifacts.aliases.items() if one is made} >= {"latest", "best"}
    (report,) = service.artifacts.named("report")
    assert (report.kind, report.files) == ("report", {"report.html": b"<p>so it went</p>"})
    (merged,) = service.artifacts.named("merged")
    assert (merged.files, merged.metadata["digest"]) == ({}, "d" * 64)
    assert [entry["ref"] for entry in merged.manifest.values()] == [f"sha256:{'d' * 64}"]
    stored = service.runs[run_id]
    assert stored.summary["sample"] == "é\n[bold]"
    assert stored.summary["link/input/model"] == "file:///cas/b"
    picture, table = stored.summary["report/loss"], stored.summary["eval/before_after"]
    assert (picture["_type"], stored.uploads[picture["path"]]) == ("image-file", PICTURE)
    assert (table["_type"], table["nrows"]) == ("table-file", 2)
    (held,) = [one for one in service.artifacts.made if one.kind == "run_table"]
    assert held.state == "COMMITTED"
    (data,) = [json.loads(data) for name, data in held.files.items() if name.endswith(".table.json")]
    assert (data["columns"], data["data"]) == (["name", "after"], [["nll", 0.5], ["ended", None]])
    for name, facts in (("rows.jsonl", {"num_rows": 3, "format": "messages"}), ("model", {"size": 7})):
        told = stored.config[f"inputs.{name}"]["value"]
        assert told.items() >= facts.items()
        assert len(told["digest"]) == 64
    assert not service.unknown


def test_all_that_a_run_used_and_made_arrives_once_with_who_made_and_used_it(service, run_info, tmp_path):
    run = run_info()
    logger = WandbLogger()
    logger.start(run)
    for _ in range(2):  # a follower that was killed before it had noted this does it again
        log_all(logger, tmp_path)
        logger.flush()
    logger.finish("done")
    check_made(service, run.tracker_id)
    for name, kind, digest in (("rows.jsonl", "dataset", "a"), ("model", "model", "b")):
        (used,) = service.artifacts.named(name)
        assert (used.kind, used.metadata["digest"], used.files) == (kind, digest * 64, {})
        assert set(used.used_by) == {run.tracker_id}
        assert used.made_by is None
    assert [line["_step"] for line in service.runs[run.tracker_id].lines] == [1]


def test_the_same_content_is_the_same_version_and_another_a_new_one(service, run_info, tmp_path):
    for name, weights in (("one", b"\x00" * 5000), ("two", b"\x00" * 5000), ("three", b"\x01" * 5000)):
        logger = WandbLogger()
        logger.start(run_info(name))
        logger.log_artifact(ROWS)
        logger.log_artifact(adapter(tmp_path, weights))
        logger.finish("done")
    (rows,) = service.artifacts.named("rows.jsonl")
    assert rows.used_by == [f"{name}-0123abcd" for name in ("one", "two", "three")]
    first, second = service.artifacts.named("adapter")
    assert (first.metadata["digest"], second.metadata["digest"]) == ("00" * 32, "01" * 32)
    assert service.artifacts.aliases["adapter", "latest"] is second


def test_offline_everything_arrives_with_sync_and_inputs_in_the_config(service, run_info, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_info()
    logger = WandbLogger()
    logger.start(run)
    log_all(logger, tmp_path)
    logger.finish("done")
    assert not service.operations, "offline reaches nothing"
    sync_offline(run)
    check_made(service, run.tracker_id)
    assert not service.artifacts.named("rows.jsonl"), "the library takes no used artifact offline"


@pytest.mark.parametrize("what", ["CreateArtifact", "upload"])
def test_an_artifact_that_is_not_taken_in_time_is_sent_again(what, service, run_info, tmp_path):
    logger = WandbLogger()
    logger.start(run_info())
    service.refuse[what] = (503, "")
    with impatient(), pytest.raises(LoggerUnavailable, match="W&B"):
        logger.log_artifact(adapter(tmp_path))
    service.refuse.clear()
    again = WandbLogger()
    again.start(run_info())
    again.log_artifact(adapter(tmp_path))
    again.finish("done")
    (made,) = service.artifacts.named("adapter")
    assert made.files == FILES


def test_an_artifact_that_is_refused_is_no_matter_of_waiting(service, run_info, tmp_path):
    logger = WandbLogger()
    logger.start(run_info())
    service.refuse["CreateArtifact"] = (403, "")
    with pytest.raises(ValueError, match="403"):
        logger.log_artifact(adapter(tmp_path))
    service.refuse.clear()
    logger.finish("done")


def test_texts_that_tell_of_waiting_are_told_from_refusals():
    for text in ("HTTP 503: busy", "429 Too Many Requests", "connection refused", "timed out"):
        with pytest.raises(LoggerUnavailable), wandb_artifacts.kept():
            raise ValueError(text)
    with pytest.raises(ValueError, match="entity not found"), wandb_artifacts.kept():
        raise ValueError("HTTP 404: entity not found")
