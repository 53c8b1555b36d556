"""Runs in MLflow: a tracking server, or a SQLite file beside the run directory."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

# Read by mlflow when it is imported: whoever logs waits and asks again itself, and nobody is told of the use.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag, ViewType  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from crucible_train import files  # noqa: E402
from crucible_train.adapters.loggers.base import QuietLogger  # noqa: E402
from crucible_train.adapters.loggers.mlflow_artifacts import RunArtifacts  # noqa: E402
from crucible_train.adapters.loggers.mlflow_reached import reached, without_user  # noqa: E402
from crucible_train.adapters.loggers.waiting_steps import Step, WaitingSteps  # noqa: E402
from crucible_train.ports import Cell, LoggedArtifact, Opened, RunInfo, RunStatus  # noqa: E402

T = TypeVar("T")

TRACKER_ID = "crucible.tracker_id"
MARKER = "crucible/last_step"  # a metric, as only metrics are stored in one transaction with metrics

_STATUS: Mapping[RunStatus, str] = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_MAX_METRICS, _MAX_PARAMS = 1000, 100
_MAX_KEY, _MAX_PARAM, _MAX_TAG = 250, 6000, 8000
_NOT_IN_NAMES = re.compile(r"[^\w./ -]")


class MlflowLogger(QuietLogger):
    """One MLflow run per ``tracker_id``, found again by a tag.

    Every step is stored in one transaction together with a marker, the metric ``crucible/last_step``; ``start`` reads
    it back, so a step is neither repeated nor left out, whatever was killed. A step must be complete when ``flush``
    is called: what comes to the same step after another ``start`` is taken for a repetition. (A step of a thousand
    numbers and more takes several transactions, the marker in the last.)

    Where the runs are: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` and ``mlflow-artifacts`` beside the run directory.
    """

    def __init__(self) -> None:
        """Nothing is open."""
        self._client: MlflowClient
        self._run_id = ""
        self._steps = WaitingSteps()
        self._is_unsure = False
        self._artifacts: RunArtifacts | None = None

    def start(self, run: RunInfo) -> Opened:
        """Find the run, or make it.

        Raises:
            LoggerUnavailable: the server cannot be reached, or the database is busy.
        """
        beside = run.run_dir.absolute().parent
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside / 'mlflow.db'}"
        is_server = uri.startswith(("http://", "https://"))
        with reached():
            if is_server:
                found, is_new = self._open(uri, run, artifacts=None)
            else:  # two runs that begin side by side must not both create the tables
                beside.mkdir(parents=True, exist_ok=True)
                with FileLock(beside / "mlflow.db.lock"):
                    found, is_new = self._open(uri, run, artifacts=beside / "mlflow-artifacts")
        self._run_id = found.info.run_id
        self._steps = WaitingSteps(_last_step(found))
        self._artifacts = RunArtifacts(self._client, found, run.project)
        page = f"/#/experiments/{found.info.experiment_id}/runs/{self._run_id}" if is_server else ""
        return Opened(f"{without_user(uri)}{page}", self._steps.last_step, is_new=is_new)

    def log_hparams(self, values: Mapping[str, Cell]) -> None:
        """Record settings as params; MLflow keeps the first value of each, so one that changed becomes a tag."""
        with reached():
            known = self._client.get_run(self._run_id).data.params
            new, changed = [], []
            for name, value in values.items():
                key, text = _key(name), _cut(str(value), _MAX_PARAM)
                if key not in known:
                    new.append(Param(key, text))
                elif known[key] != text:
                    changed.append(RunTag(f"changed.{key}"[:_MAX_KEY], text))
            for params in _chunks(new, _MAX_PARAMS):
                self._client.log_batch(self._run_id, params=params, synchronous=True)
            for tags in _chunks(changed, _MAX_PARAMS):
                self._client.log_batch(self._run_id, tags=tags, synchronous=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        self._steps.add({_metric(name): value for name, value in metrics.items()}, step)
        if len(self._steps) >= 2 * _MAX_METRICS:
            self._send(self._steps.waiting()[:-1])  # the newest may not be complete

    def log_text(self, name: str, text: str, step: int) -> None:
        """Record a text as a file of the run."""
        with reached():
            self._client.log_text(self._run_id, text, f"texts/{_file(name, step, text)}.txt")

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Record a table, in the form in which MLflow's own ``log_table`` writes one."""
        table = {"columns": list(columns), "data": [list(row) for row in rows]}
        path = f"tables/{_file(name, step, files.canonical_json(table))}.json"
        with reached():
            self._client.log_dict(self._run_id, table, path)
            self._opened_artifacts.list_table(path)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a picture as a file of the run."""
        with reached():
            self._client.log_artifact(self._run_id, str(path), f"images/{_key(name)}/step-{step:06d}")

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Record a dataset as an input, a model as files, LoggedModel and registered version, the rest as files."""
        with reached():
            self._opened_artifacts.log(artifact, self._steps.last_step)

    def link(self, name: str, url: str) -> None:
        """Record an address as a tag."""
        with reached():
            self._client.set_tag(self._run_id, f"link.{_key(name)}"[:_MAX_KEY], _cut(url, _MAX_TAG))

    def flush(self) -> None:
        """Send what waits."""
        self._send(self._steps.waiting())

    def finish(self, status: RunStatus) -> None:
        """Send what waits and end the run."""
        if not self._run_id:
            return
        self.flush()
        with reached():
            self._client.set_terminated(self._run_id, _STATUS[status])
        self._run_id = ""

    @property
    def _opened_artifacts(self) -> RunArtifacts:
        assert self._artifacts is not None, "start comes first"
        return self._artifacts

    def _open(self, uri: str, run: RunInfo, artifacts: Path | None) -> tuple[Run, bool]:
        """The run, and whether it was made now."""
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment_id = self._experiment(run.project, artifacts)
        tracker_id = run.tracker_id or run.run_id
        wanted = {TRACKER_ID: tracker_id, "crucible.run_id": run.run_id} | {_key(tag): "true" for tag in run.tags}
        if run.group:
            wanted["group"] = run.group
        if run.notes:
            wanted["mlflow.note.content"] = run.notes
        wanted = {key: _cut(value, _MAX_TAG) for key, value in wanted.items()}
        name = run.name or run.run_id
        query = f"tags.`{TRACKER_ID}` = '{tracker_id}'"
        found = self._client.search_runs([experiment_id], query, ViewType.ACTIVE_ONLY, max_results=1)
        if not found:
            return self._client.create_run(experiment_id, tags=wanted, run_name=name), True
        known = found[0]
        run_id = known.info.run_id
        if known.info.status != "RUNNING" or known.info.run_name != name:
            self._client.update_run(run_id, status="RUNNING", name=name)
        tags = [RunTag(key, value) for key, value in wanted.items() if known.data.tags.get(key) != value]
        if tags:
            self._client.log_batch(run_id, tags=tags, synchronous=True)
        return self._client.get_run(run_id), False

    def _experiment(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = None if artifacts is None else (artifacts / _key(name).replace("/", "_")).as_uri()
            try:
                return self._client.create_experiment(name, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)  # another run was first
        assert found is not None, f"MLflow says that the experiment {name} exists, and does not find it"
        return found.experiment_id

    def _send(self, steps: Sequence[Step]) -> None:
        if not steps or not self._run_id:
            return
        with reached():
            if self._is_unsure:  # the last request may have been stored although its answer was lost
                self._steps.sent(_last_step(self._client.get_run(self._run_id)))
                self._is_unsure = False
                steps = [(step, metrics) for step, metrics in steps if step > self._steps.last_step]
            now = int(time.time() * 1000)
            for batch, last_step in _batches(steps):
                metrics = [Metric(name, value, now, step) for name, value, step in batch]
                self._is_unsure = True
                self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)
                self._is_unsure = False
                if last_step is not None:
                    self._steps.sent(last_step)


def _last_step(run: Run) -> int:
    return int(run.data.metrics.get(MARKER, -1))


def _batches(steps: Sequence[Step]) -> Iterator[tuple[list[tuple[str, float, int]], int | None]]:
    """Requests of at most a thousand numbers and, where it ends with a step's marker, that step."""
    batch: list[tuple[str, float, int]] = []
    last_step: int | None = None
    for step, metrics in steps:
        marked = [(name, value, step) for name, value in [*metrics.items(), (MARKER, float(step))]]
        if batch and len(batch) + len(marked) > _MAX_METRICS:
            yield batch, last_step
            batch, last_step = [], None
        *firsts, last = _chunks(marked, _MAX_METRICS)
        for part in firsts:
            yield list(part), None
        batch, last_step = [*batch, *last], step
    if batch:
        yield batch, last_step


def _chunks(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _key(name: str) -> str:
    """A name with only the characters that every MLflow store takes."""
    return _NOT_IN_NAMES.sub("_", name)[:_MAX_KEY].strip() or "_"


def _metric(name: str) -> str:
    """The name of a metric, told from every other: a character that not every store takes stands as its number."""
    return _key(_NOT_IN_NAMES.sub(lambda found: f"_{ord(found[0]):02x}", name))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _file(name: str, step: int, content: str) -> str:
    """The same content under the same name is the same file, so that a repetition adds nothing."""
    return f"{_key(name)}/step-{step:06d}-{files.sha256_bytes(content.encode(errors='replace'))[:8]}"
