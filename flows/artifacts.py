"""What a flow run's page shows: a summary with the loss curve, and tables."""

import base64
import json
from pathlib import Path

from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact

from crucible_train.stages.package import EVALUATION, LOSS_CURVE, SUMMARY_PAGE

_MAX_CHARACTERS = 600


async def publish(folder: Path) -> None:
    """Show the summary, the loss curve and the answers before and after of a packaged run."""
    picture = base64.b64encode((folder / LOSS_CURVE).read_bytes()).decode()
    url = f"data:image/png;base64,{picture}"
    text = (folder / SUMMARY_PAGE).read_text(encoding="utf-8")
    await acreate_markdown_artifact(f"{text}\n![loss]({url})\n", key="sft-summary", description="what the run gained")
    await acreate_image_artifact(url, key="sft-loss", description="loss of every step, and held-out NLL")
    rows = _answers(folder / EVALUATION / "results.jsonl")
    if rows:
        await acreate_table_artifact(rows, key="sft-answers", description="held-out prompts, answered before and after")


def _answers(path: Path) -> list[dict[str, str]]:
    sides: dict[str, list[dict[str, str]]] = {"before": [], "after": []}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "answer":
            sides[record["model"]].append(record)
    return [
        {
            "prompt": _short(before["prompt"]),
            "before": _short(before["text"]),
            "after": _short(after["text"]),
            "reference": _short(before["reference"]),
        }
        for before, after in zip(sides["before"], sides["after"], strict=True)
    ]


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"
