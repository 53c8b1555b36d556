"""MLflow: a real server and a SQLite file hold every metric once, in order, however often a run is begun again."""

import datetime
import json
import multiprocessing
import socket
from email.utils import format_datetime
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from crucible_train import files
from crucible_train.adapters.loggers.mlflow_reached import without_user
from crucible_train.adapters.loggers.mlflow_runs import MARKER, MlflowClient, MlflowLogger
from crucible_train.ports import LoggedArtifact, LoggerUnavailable


@pytest.fixture(params=["sqlite", "server"])
def store(request, monkeypatch) -> str:
    if request.param == "sqlite":
        return request.getfixturevalue("mlflow_database")
    address = request.getfixturevalue("mlflow_server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address


def project(request) -> str:
    return request.node.name.replace("[", "-").replace("]", "")


def history(store: str, logger_run: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient(store).get_metric_history(logger_run, name)]


def runs(store: str, name: str) -> list:
    client = MlflowClient(store)
    return client.search_runs([client.get_experiment_by_name(name).experiment_id])


def log_steps(logger: MlflowLogger, first: int, last: int) -> None:
    for step in range(first, last + 1):
        logger.log_metrics({"train/loss": 1 / step, "optim/learning_rate": step * 1e-4}, step)
        logger.log_metrics({"perf/tokens_per_second": 10.0 * step}, step)


def test_a_run_is_found_again_and_every_step_is_there_once(store, run_info, request):
    """The second start is what follows a kill after sending, before anybody noted that it was sent."""
    run = run_info(project=project(request), name="run")
    logger = MlflowLogger()
    assert logger.start(run).last_step == -1
    log_steps(logger, 1, 7)
    logger.flush()
    again = MlflowLogger()
    opened = again.start(run)
    assert opened.last_step == 7
    log_steps(again, 1, 12)
    again.finish("done")
    again.finish("failed")
    (found,) = runs(store, run.project)
    expected = [(step, 1 / step) for step in range(1, 13)]
    assert history(store, found.info.run_id, "train/loss") == expected
    assert history(store, found.info.run_id, "perf/tokens_per_second") == [(s, 10.0 * s) for s in range(1, 13)]
    assert history(store, found.info.run_id, MARKER) == [(step, float(step)) for step in range(1, 13)]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    tags = found.data.tags
    assert (tags["crucible.tracker_id"], tags["group"], tags["short"]) == (run.tracker_id, "sweep", "true")
    assert tags["mlflow.note.content"] == "a *remark*"
    is_server = store.startswith("http")
    page = f"{store}/#/experiments/{found.info.experiment_id}/runs/{found.info.run_id}"
    assert opened.url == (page if is_server else store)


def test_metrics_whose_names_mlflow_does_not_take_are_all_there(store, run_info, request):
    run = run_info(project=project(request))
    logger = MlflowLogger()
    logger.start(run)
    logger.log_metrics({f"reward/mean_arithmetic/{sign}": float(n) for n, sign in enumerate("+*-")}, 1)
    logger.finish("done")
    (found,) = runs(store, run.project)
    digits = files.sha256_bytes(b"reward/mean_arithmetic/*")[:8]
    for n, name in enumerate(("_", f"_-{digits}", "-")):
        assert history(store, found.info.run_id, f"reward/mean_arithmetic/{name}") == [(1, float(n))]


def test_two_runs_side_by_side_do_not_meet(store, run_info, request):
    names = [project(request)] * 2
    infos = [
        run_info(run_name, project=name, tracker_id=f"{name}-{run_name}")
        for run_name, name in zip("ab", names, strict=True)
    ]
    loggers = [MlflowLogger(), MlflowLogger()]
    for logger, info in zip(loggers, infos, strict=True):
        logger.start(info)
    for step in (1, 2, 3):
        for offset, logger in enumerate(loggers):
            logger.log_metrics({"train/loss": step + offset / 2}, step)
    for logger in loggers:
        logger.finish("done")
    found = {run.info.run_name: run.info.run_id for run in runs(store, names[0])}
    assert history(store, found["a"], "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert history(store, found["b"], "train/loss") == [(1, 1.5), (2, 2.5), (3, 3.5)]


def test_a_request_whose_answer_is_lost_is_not_sent_twice(mlflow_database, run_info, monkeypatch):
    """The request is stored; what the client sees is a broken connection."""
    import requests

    run = run_info()
    logger = MlflowLogger()
    logger.start(run)
    send = logger._client.log_batch

    def lost(*args, **kwargs):
        send(*args, **kwargs)
        raise requests.exceptions.ConnectionError("reset by peer")

    log_steps(logger, 1, 3)
    monkeypatch.setattr(logger._client, "log_batch", lost)
    with pytest.raises(LoggerUnavailable, match="MLflow: reset by peer"):
        logger.flush()
    monkeypatch.undo()
    log_steps(logger, 1, 4)
    logger.finish("done")
    (found,) = runs(mlflow_database, run.project)
    assert [step for step, _ in history(mlflow_database, found.info.run_id, "train/loss")] == [1, 2, 3, 4]


def test_more_numbers_than_a_request_may_hold_arrive_in_order(store, run_info, request):
    run = run_info(project=project(request), tracker_id=project(request))
    logger = MlflowLogger()
    logger.start(run)
    for step in range(1, 1201):
        logger.log_metrics({"train/loss": float(step), "train/entropy": -float(step)}, step)
    logger.log_metrics({f"eval/task_{i}": float(i) for i in range(1100)}, 1201)
    logger.finish("done")
    (found,) = runs(store, run.project)
    assert history(store, found.info.run_id, "train/loss") == [(s, float(s)) for s in range(1, 1201)]
    assert found.data.metrics["eval/task_1099"] == 1099.0
    assert found.data.metrics[MARKER] == 1201


def test_settings_of_any_number_and_length_are_params_and_one_that_changes_is_a_tag(store, run_info, request):
    run = run_info(project=project(request), tracker_id=project(request))
    logger = MlflowLogger()
    logger.start(run)
    values = {f"section.field_{i}": i for i in range(250)} | {"long": "x" * 9000, "odd:name[0]": None, "seed": 1}
    logger.log_hparams(values)
    logger.log_hparams(values | {"seed": 2})
    logger.finish("done")
    (found,) = runs(store, run.project)
    assert len(found.data.params) == 253
    assert found.data.params["section.field_249"] == "249"
    assert len(found.data.params["long"]) == 6000
    assert found.data.params["odd_name_0_"] == "None"
    assert (found.data.params["seed"], found.data.tags["changed.seed"]) == ("1", "2")


def test_names_that_come_out_alike_stay_apart_also_in_a_run_that_goes_on(mlflow_database, run_info):
    long = "eval/" + "x" * 300
    names = ["eval/a:b", "eval/a_b", "eval/a?b", long + "1", long + "2", "eval/plain"]
    values = {name: float(number) for number, name in enumerate(names)}
    for first, last in ((0, 1), (2, 3)):
        logger = MlflowLogger()
        logger.start(run_info())
        logger.log_hparams({"x:y": 1, "x_y": 2})
        for step in range(first, last + 1):
            # the second time the name that was there later comes first
            given = values if first == 0 else dict(reversed(values.items()))
            logger.log_metrics({name: value + step for name, value in given.items()}, step)
        logger.finish("done")
    (found,) = runs(mlflow_database, "crucible-train")
    keys = [name for name in found.data.metrics if name != MARKER]
    assert len(keys) == len(names)
    assert {"eval/a_b", "eval/plain"} <= set(keys)
    curves = sorted(history(mlflow_database, found.info.run_id, key) for key in keys)
    assert curves == [[(step, float(number + step)) for step in range(4)] for number in range(len(names))]
    assert found.data.tags["crucible.name.eval/a_b"] == "eval/a:b"
    assert sorted(found.data.params.values()) == ["1", "2"]
    assert not [tag for tag in found.data.tags if tag.startswith("changed.")]


def test_no_tag_takes_the_place_of_one_by_which_a_run_is_known(mlflow_database, run_info):
    tags = ["crucible.tracker_id", "mlflow.runName", "group", "a:b", "a_b", "plain"]
    for _ in range(2):
        logger = MlflowLogger()
        logger.start(run_info(tags=tags, group=""))
        logger.finish("done")
    (found,) = runs(mlflow_database, "crucible-train")
    known = found.data.tags
    assert known["crucible.tracker_id"] == run_info().tracker_id
    assert (known["mlflow.runName"], known["plain"], known["tag.group"]) == ("run", "true", "true")
    assert known["tag.crucible.tracker_id"] == known["tag.mlflow.runName"] == "true"
    assert len([tag for tag in known if tag.startswith("a_b")]) == 2


def test_texts_tables_pictures_and_links_are_files_and_tags_of_the_run(store, run_info, request, tmp_path):
    run = run_info(project=project(request), tracker_id=project(request))
    Image.new("RGB", (4, 4), "red").save(tmp_path / "curve.png")
    for _ in range(2):  # the second time is a replay
        logger = MlflowLogger()
        logger.start(run)
        logger.log_text("sample", "an answer with é", 3)
        logger.log_table("eval/compared", ["task", "before", "after"], [["gsm8k", 0.25, 0.5], ["nll", None, 1.5]], 3)
        logger.log_image("curve", tmp_path / "curve.png", 3)
        logger.link("report", "https://example.invalid/report")
        logger.finish("done")
    (found,) = runs(store, run.project)
    client, run_id = MlflowClient(store), found.info.run_id
    (table,) = client.list_artifacts(run_id, "tables/eval/compared")
    local = client.download_artifacts(run_id, table.path, str(tmp_path))
    shown = json.loads(Path(local).read_text())
    assert shown == {"columns": ["task", "before", "after"], "data": [["gsm8k", 0.25, 0.5], ["nll", None, 1.5]]}
    assert json.loads(found.data.tags["mlflow.loggedArtifacts"]) == [{"path": table.path, "type": "table"}]
    (text,) = client.list_artifacts(run_id, "texts/sample")
    assert Path(client.download_artifacts(run_id, text.path, str(tmp_path))).read_text("utf-8").endswith("é")
    assert [f.path for f in client.list_artifacts(run_id, "images/curve/step-000003")] == [
        "images/curve/step-000003/curve.png"
    ]
    assert found.data.tags["link.report"] == "https://example.invalid/report"


def test_a_dataset_is_an_input_and_a_model_is_registered_once(store, run_info, request, tmp_path):
    run = run_info(project=project(request), tracker_id=project(request))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter.safetensors").write_bytes(b"weights")
    rows = LoggedArtifact("gsm8k", "dataset", True, "cd" * 32, facts={"num_rows": 7473})
    adapter = LoggedArtifact(
        "adapter", "model", False, "ab" * 32, tmp_path / "adapter", ["latest", "best"], {"nll": 1.25, "base": "tiny"}
    )
    for _ in range(2):
        logger = MlflowLogger()
        logger.start(run)
        log_steps(logger, 1, 2)
        logger.flush()
        logger.log_artifact(rows)
        logger.log_artifact(adapter)
        logger.finish("done")
    (found,) = runs(store, run.project)
    client = MlflowClient(store)
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("gsm8k", ("cd" * 32)[:36])
    assert json.loads(given.dataset.profile) == {"num_rows": 7473}
    assert json.loads(given.dataset.source)["tags"]["digest"] == "cd" * 32
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert (model.name, str(model.status), model.source_run_id) == ("adapter", "READY", found.info.run_id)
    assert model.params == {"base": "tiny", "nll": "1.25"}
    assert [file.path for file in client.list_artifacts(found.info.run_id, "models/adapter")] == [
        "models/adapter/adapter.safetensors"
    ]
    best = client.get_model_version_by_alias(f"{run.project}-adapter", "best")
    assert (str(best.version), best.run_id) == ("1", found.info.run_id)
    assert len(client.search_model_versions(f"name = '{run.project}-adapter'")) == 1


@pytest.mark.parametrize(("status", "wish", "seconds"), [(429, "17", 17.0), (503, "", None), (500, "", None)])
def test_a_server_that_refuses_is_unavailable_for_as_long_as_it_says(
    refusing, run_info, monkeypatch, status, wish, seconds
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing(status, wish))
    with pytest.raises(LoggerUnavailable, match="MLflow") as caught:
        MlflowLogger().start(run_info())
    assert caught.value.retry_after_s == seconds


def test_a_wish_may_be_a_date(refusing, run_info, monkeypatch):
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    for wish, least, most in ((format_datetime(later, usegmt=True), 30, 60), ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0)):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing(503, wish))
        with pytest.raises(LoggerUnavailable, match="MLflow") as caught:
            MlflowLogger().start(run_info())
        assert caught.value.retry_after_s is not None
        assert least <= caught.value.retry_after_s <= most
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing(503, "soon"))
    with pytest.raises(LoggerUnavailable, match="MLflow") as caught:
        MlflowLogger().start(run_info())
    assert caught.value.retry_after_s is None


def test_a_server_that_is_absent_or_hangs_is_unavailable(run_info, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(LoggerUnavailable):
            MlflowLogger().start(run_info())
        silent.listen()  # takes connections and never answers
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with pytest.raises(LoggerUnavailable, match="timeout"):
            MlflowLogger().start(run_info())


def test_a_request_that_is_wrong_is_no_absence(refusing, run_info, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing(403))
    with pytest.raises(MlflowException):
        MlflowLogger().start(run_info())


def test_a_password_in_the_address_is_shown_nowhere(mlflow_server, refusing, run_info, monkeypatch, request):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.replace("http://", "http://user:hunter2@"))
    opened = MlflowLogger().start(run_info(project=project(request)))
    assert opened.url is not None
    assert "hunter2" not in opened.url
    assert opened.url.startswith(mlflow_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing(500).replace("http://", "http://user:hunter2@"))
    with pytest.raises(LoggerUnavailable) as caught:
        MlflowLogger().start(run_info())
    assert "hunter2" not in str(caught.value)


def test_an_address_is_shown_without_what_follows_its_path():
    assert without_user("postgresql://h:5432/db?user=u&password=hunter2#x") == "postgresql://h:5432/db"
    assert without_user("sqlite:////home/me/mlflow.db") == "sqlite:////home/me/mlflow.db"


def _start(info) -> int:
    logger = MlflowLogger()
    logger.start(info)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.finish("done")
    return 0


def test_two_first_runs_that_begin_together_make_one_database(run_info, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    infos = [run_info("a"), run_info("b")]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_start, infos) == [0, 0]
    database = f"sqlite:///{infos[0].run_dir.parent / 'mlflow.db'}"
    assert sorted(run.info.run_name for run in runs(database, "crucible-train")) == ["a", "b"]
