"""What a run used and made, in MLflow: inputs, files, LoggedModels and registered versions."""

import json
import re
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Run
from mlflow.exceptions import MlflowException

from crucible_train.ports import LoggedArtifact

DIGEST = "crucible.digest"

_NOT_IN_NAMES = re.compile(r"[^\w.-]")
_MAX_DIGEST = 36
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)


class RunArtifacts:
    """The artifacts of one run; each digest under a name is recorded once, also after a kill half way.

    Args:
        client: reaches the store.
        run: the run.
        project: what registered models are named after.
    """

    def __init__(self, client: MlflowClient, run: Run, project: str) -> None:
        """Learn what the run holds already."""
        self._client, self._run, self._project = client, run, project
        self._recorded = {key for key in run.data.tags if key.startswith("crucible.artifact.")}
        self._tables: list[Mapping[str, str]] = json.loads(run.data.tags.get("mlflow.loggedArtifacts", "[]"))

    def log(self, artifact: LoggedArtifact, step: int) -> None:
        """Record an artifact as of a step."""
        key = f"crucible.artifact.{_name(artifact.name)}.{artifact.digest[:16]}"
        if key in self._recorded:
            return
        if artifact.kind == "dataset":
            self._log_dataset(artifact)
        elif artifact.path is not None:
            self._upload(artifact)
        if artifact.kind == "model" and not artifact.is_input:
            self._log_model(artifact, max(step, 0))
        facts = {"kind": artifact.kind, "input": artifact.is_input, "digest": artifact.digest, **artifact.facts}
        self._client.set_tag(self._run.info.run_id, key, json.dumps(facts, default=str)[:5000])
        self._recorded.add(key)

    def list_table(self, path: str) -> None:
        """Name a table where MLflow's pages look for them."""
        entry = {"path": path, "type": "table"}
        if entry not in self._tables:
            self._tables.append(entry)
            self._client.set_tag(self._run.info.run_id, "mlflow.loggedArtifacts", json.dumps(self._tables))

    def _log_dataset(self, artifact: LoggedArtifact) -> None:
        source = CodeDatasetSource({"digest": artifact.digest})
        described = MetaDataset(source, name=artifact.name, digest=artifact.digest[:_MAX_DIGEST]).to_dict()
        dataset = Dataset(
            name=described["name"],
            digest=described["digest"],
            source_type=described["source_type"],
            source=described["source"],
            profile=json.dumps(dict(artifact.facts)),
        )
        context = "training" if artifact.is_input else "output"
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self._run.info.run_id, [DatasetInput(dataset, tags)])

    def _upload(self, artifact: LoggedArtifact) -> None:
        assert artifact.path is not None
        folder = f"{artifact.kind}s/{_name(artifact.name)}"
        upload = self._client.log_artifacts if artifact.path.is_dir() else self._client.log_artifact
        upload(self._run.info.run_id, str(artifact.path), folder)

    def _log_model(self, artifact: LoggedArtifact, step: int) -> None:
        run_id, experiment_id = self._run.info.run_id, self._run.info.experiment_id
        tags = {DIGEST: artifact.digest, "mlflow.model.isExternal": "true"}
        earlier = self._client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
        model = next((model for model in earlier if model.tags.get(DIGEST) == artifact.digest), None)
        if model is None:
            words = {name: str(value) for name, value in artifact.facts.items()}
            model = self._client.create_logged_model(
                experiment_id, _name(artifact.name), run_id, tags, words, model_type="crucible-train"
            )
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        if str(model.status) != "READY":
            self._client.finalize_logged_model(model.model_id, "READY")
        if artifact.aliases and artifact.path is not None:
            self._register(artifact, tags)

    def _register(self, artifact: LoggedArtifact, tags: Mapping[str, str]) -> None:
        name, run_id = _name(f"{self._project}-{artifact.name}"), self._run.info.run_id
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        version = next((version for version in versions if version.tags.get(DIGEST) == artifact.digest), None)
        if version is None:
            source = f"{self._run.info.artifact_uri}/models/{_name(artifact.name)}"
            version = self._client.create_model_version(name, source, run_id, tags={DIGEST: tags[DIGEST]})
        for alias in artifact.aliases:
            if not _RESERVED_ALIAS.fullmatch(alias):  # MLflow keeps these itself
                self._client.set_registered_model_alias(name, _name(alias).replace(".", "_"), version.version)


def _name(text: str) -> str:
    return _NOT_IN_NAMES.sub("_", text)[:200]
