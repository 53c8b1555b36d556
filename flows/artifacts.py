"""What a flow run's page shows: a summary with a curve, and tables."""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    acreate_image_artifact,
    acreate_link_artifact,
    acreate_markdown_artifact,
    acreate_table_artifact,
)

from crucible_train.stages.distill.package import DIVERGENCE_CURVE
from crucible_train.stages.dpo.package import MARGIN_CURVE
from crucible_train.stages.layout import EVALUATION, LOSS_CURVE, SUMMARY_PAGE
from crucible_train.stages.rl.package import REWARD_CURVE
from crucible_train.tracking.ending import SentTo

_MAX_CHARACTERS = 600
_MAX_ROWS = 100


async def publish_sft(folder: Path) -> None:
    """Show the summary, the loss curve and the answers before and after of a packaged run."""
    await _publish("sft", folder, folder / LOSS_CURVE, "loss", "loss of every step, and held-out NLL")
    rows = _answers(folder / EVALUATION / "results.jsonl")
    if rows:
        await acreate_table_artifact(rows, key="sft-answers", description="held-out prompts, answered before and after")
    await _publish_matches("sft", folder)


async def publish_rl(folder: Path) -> None:
    """Show the summary, the reward curve and held-out problems played before and after of a packaged run."""
    what = "mean reward of every step, and of held-out problems"
    await _publish("rl", folder, folder / REWARD_CURVE, "reward", what)
    rows = _played(folder / EVALUATION / "results.jsonl")
    if rows:
        await acreate_table_artifact(rows, key="rl-samples", description="held-out problems, played before and after")


async def publish_distill(folder: Path) -> None:
    """Show the summary, the divergence and held-out problems answered before and after of a packaged run."""
    what = "divergence from the teacher over the answers of every step"
    await _publish("distill", folder, folder / DIVERGENCE_CURVE, "divergence", what)
    rows = _played(folder / EVALUATION / "results.jsonl")
    if rows:
        about = "held-out problems, answered before and after"
        await acreate_table_artifact(rows, key="distill-samples", description=about)


async def publish_dpo(folder: Path) -> None:
    """Show the summary, the margin curve and the margins of held-out preferences of a packaged run."""
    what = "mean margin of every step's preferences, and of held-out ones"
    await _publish("dpo", folder, folder / MARGIN_CURVE, "margin", what)
    rows = _margins(folder / EVALUATION / "results.jsonl")
    if rows:
        await acreate_table_artifact(rows, key="dpo-margins", description="held-out preferences, before and after")
    await _publish_matches("dpo", folder)


async def publish_trackers(sent: Sequence[SentTo]) -> None:
    """Show where each tracker has the run, and what it lacks."""
    if sent:
        lines = [f"- {one.tracker}: {_where(one)}" + (f" (lacks {one.lacks})" if one.lacks else "") for one in sent]
        await acreate_markdown_artifact("\n".join(lines), key="trackers", description="where the run is tracked")
    for one in sent:
        if one.url is not None and one.url.startswith("http"):
            key = "tracker-" + re.sub(r"[^a-z0-9]+", "-", one.tracker.lower()).strip("-")
            await acreate_link_artifact(one.url, link_text=one.tracker, key=key, description="the run there")


def _where(sent: SentTo) -> str:
    """A link only where a browser can follow it, which it cannot to a database."""
    if not sent.url:
        return "in its own files"
    return f"<{sent.url}>" if sent.url.startswith(("http://", "https://", "file://")) else f"`{sent.url}`"


async def _publish(method: str, folder: Path, picture: Path, curve: str, what: str) -> None:
    url, text = _data_url(picture), (folder / SUMMARY_PAGE).read_text(encoding="utf-8")
    await acreate_markdown_artifact(
        f"{text}\n![{curve}]({url})\n", key=f"{method}-summary", description="what the run gained"
    )
    await acreate_image_artifact(url, key=f"{method}-{curve}", description=what)


async def _publish_matches(method: str, folder: Path) -> None:
    """Show what a judge said of the answers of both models, where it was asked."""
    matches = _matches(folder / EVALUATION / "results.jsonl")
    if matches:
        what = "held-out prompts, answered before and after, compared by a judge"
        await acreate_table_artifact(matches, key=f"{method}-win-rate", description=what)


def _data_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _sides(path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The first records before and after, in pairs."""
    sides: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "model" in record:
            sides[record["model"]].append(record)
    return list(zip(sides["before"], sides["after"], strict=True))[:_MAX_ROWS]


def _margins(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "preference": before["row"],
            "margin before": before["margin"],
            "margin after": after["margin"],
            "chosen reward after": after["chosen_reward"],
            "rejected reward after": after["rejected_reward"],
        }
        for before, after in _sides(path)
    ]


def _matches(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "prompt": _short(str(record["messages"][-1]["content"])),
            "before": _short(record["answers"]["y"]),
            "after": _short(record["answers"]["x"]),
            "preferred": {"x": "after", "y": "before", "tie": "tie"}[record["verdict"]],
            "score": record["score"],
        }
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if record["kind"] == "match"
    ][:_MAX_ROWS]


def _played(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "problem": _short(before["problem"]),
            "before": _short(_last_words(before)),
            "reward before": before["reward"],
            "after": _short(_last_words(after)),
            "reward after": after["reward"],
        }
        for before, after in _sides(path)
    ]


def _last_words(record: dict[str, Any]) -> str:
    answers = [message for message in record.get("messages", ()) if message["role"] == "assistant"]
    return str(answers[-1]["content"]) if answers else ""


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
