"""What Prefect shows of a run, and runs that Prefect starts."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _on_server(server: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(server + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def _deployed(place: Any) -> str:
    """Deploy the flow and ask for a run; its id."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.deployments import run_deployment

    from flows.sft import sft

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="here", type="process"))
    deployment = sft.to_deployment("test", work_pool_name="here", job_variables={"working_dir": str(place.folder)})
    deployment.entrypoint = "flows.sft.sft"
    deployment.apply()
    parameters = {"config": place.config().model_dump(mode="json")}
    return str(run_deployment("sft/test", parameters=parameters, timeout=0).id)


@pytest.fixture(scope="module")
def published(finished: Any, server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A flow run that a worker started from a deployment, and its artifacts by type."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    place = finished[0].copy(tmp_path_factory.mktemp("deployed"))
    with temporary_settings({PREFECT_API_URL: server}):
        flow_run_id = _deployed(place)
    worker = subprocess.run(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", "here", "--run-once"],
        env={**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)},
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    (run,) = _on_server(server, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
    found = _on_server(server, "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}})
    return {"run": run, "log": worker.stdout + worker.stderr, "place": place} | {a["type"]: a for a in found}


def test_a_run_from_a_deployment_completes(published: dict[str, Any], finished: Any) -> None:
    assert published["run"]["state_name"] == "Completed", published["log"]
    assert published["place"].run_dir.name == finished[0].run_dir.name
    assert (published["place"].run_dir / "report.html").is_file()


def test_the_summary_shows_the_comparison(published: dict[str, Any]) -> None:
    artifact = published["markdown"]
    assert artifact["key"] == "sft-summary"
    assert "| nll |" in artifact["data"]
    assert "data:image/png;base64," in artifact["data"]


def test_the_loss_curve_is_a_picture(published: dict[str, Any]) -> None:
    assert published["image"]["data"].startswith("data:image/png;base64,iVBOR")


def test_the_answers_are_a_table_of_before_and_after(published: dict[str, Any]) -> None:
    rows = json.loads(published["table"]["data"])
    assert len(rows) == 2
    assert set(rows[0]) == {"prompt", "before", "after", "reference"}
    assert "####" in rows[0]["reference"]


def test_the_form_describes_every_field_as_the_command_does() -> None:
    from crucible_train.recipes.sft import SFTConfig
    from flows.sft import sft

    form = sft.parameters.definitions
    schema = SFTConfig.model_json_schema()
    assert form["SFTConfig"]["properties"].keys() == schema["properties"].keys()
    for name, section in {"SFTConfig": schema, **schema["$defs"]}.items():
        for field, facts in section["properties"].items():
            shown = form[name]["properties"][field]
            assert shown["description"] == facts["description"]
            assert shown.get("default") == facts.get("default")
