"""What trackers are told of a run, by its configuration."""

from pathlib import Path

import pytest

from crucible_train import journal
from crucible_train.config.sections import TrackingConfig
from crucible_train.ports import LoggedArtifact
from crucible_train.recipes.post_train import PostTrainConfig, chained
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import preflight
from crucible_train.stages.tracked import run_info, settings


def test_the_methods_of_a_chain_share_a_group_and_everything_else_they_are_told():
    config = PostTrainConfig(run_name="mine", report_to=["csv"], tracking=TrackingConfig(project="p", tags=["t"]))
    for number, method in enumerate(("sft", "dpo", "rl"), 1):
        one = chained(config, method, number, "model")
        assert one.tracking == TrackingConfig(project="p", tags=["t"], group="mine")
        assert one.report_to == ["csv"]
    own = PostTrainConfig(tracking=TrackingConfig(group="g"))
    assert chained(own, "sft", 1, "model").tracking.group == "g"


def test_a_run_is_described_without_secrets(tmp_path):
    told = TrackingConfig(
        name="sk-abcdefgh12345678",
        project="r8Kf02mQxZ7tVb4LwN1sYd6HcJ9gPe3A",
        group="glpat-0123456789abcdefghij",
        notes="password=hunter2",
        tags=["hf_abcdefghij0123456789", "0123456789abcdef0123456789abcdef01234567"],
    )
    info = run_info(SFTConfig(dataset="https://me:hunter2@host/x", tracking=told), tmp_path / "run", 3, 0)
    journal.begin(info, ["csv"], "training")
    written = (tmp_path / "run" / "tracking" / "run.json").read_text()
    for secret in ("hunter2", "abcdefgh1234", "hf_abc", "r8Kf02", "glpat-0123", "0123456789abcdef01"):
        assert secret not in written


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("run_name", {"run_name": "hf_abcdefghij0123456789"}),
        ("tracking.notes", {"tracking": {"notes": "key 0123456789abcdef0123456789abcdef01234567"}}),
        ("tracking.tags[1]", {"tracking": {"tags": ["a", "sk-abcdefgh12345678"]}}),
        ("tracking.group", {"tracking": {"group": "r8Kf02mQxZ7tVb4LwN1sYd6HcJ9gPe3A"}}),
    ],
)
def test_a_secret_in_what_a_run_is_called_is_refused_before_it_is_kept(field, config):
    (problem,) = preflight.names(SFTConfig.model_validate({"report_to": ["console"], **config}))
    assert problem.startswith(f"{field}: ")
    assert problem.endswith("[redacted]: it holds a secret, which would be kept with the run; leave it out")


def test_settings_are_flat_and_leave_out_what_is_about_trackers():
    config = {"seed": 0, "report_to": ["csv"], "tracking": {"tags": ["a"]}, "eval": {"scorers": ["auto"], "x": None}}
    assert settings(config) == {"seed": 0, "eval.scorers": '["auto"]', "eval.x": None}


def test_a_run_keeps_its_tracker_id_and_a_copied_cursor_of_another_run_does_not_count(tmp_path):
    from crucible_train.cursor import Cursor, write_cursor
    from crucible_train.tracking.replica import Replica

    info = run_info(SFTConfig(), tmp_path / "run", 3, 0)
    first = journal.begin(info, ["csv"], "training")
    again = journal.begin(info, ["csv"], "done")
    assert first.info.tracker_id == again.info.tracker_id
    assert first.info.tracker_id.startswith("run-")
    replica = Replica(tmp_path / "run", "csv")
    write_cursor(replica.cursor_path, Cursor("csv", "another", last_step=7))
    assert replica.cursor(again).last_step == -1
    assert not Path(replica.lock().lock_file).exists()


def test_an_artifact_inside_the_folder_is_found_again_when_the_folder_has_moved(tmp_path):
    report = tmp_path / "run" / "report.html"
    kept = journal.Journal(tmp_path / "run")
    kept.add_artifact(LoggedArtifact("report", "report", is_input=False, digest="a" * 64, path=report))
    kept.add_artifact(LoggedArtifact("base", "model", is_input=True, digest="b" * 64, path=Path("/models/base")))
    assert [event["path"] for event in journal.read_events(tmp_path / "run")] == ["report.html", "/models/base"]
