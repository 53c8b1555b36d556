"""What the packages of all methods have in common: the published model, and what was measured before and after."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.evaluation.comparison import Compared
from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.record import RECORD_FILE, RendererRecord
from crucible_train.stages.layout import RESULTS, SUMMARY
from crucible_train.stages.publishing import ADAPTER, MODEL, whole_model

_SIDES = ("before", "after")


async def lay_out_model(
    inputs: Mapping[str, Path],
    folder: Path,
    tokenizer: FastTokenizer,
    record: RendererRecord,
    card: str,
    *,
    is_judge: bool = False,
) -> None:
    """Put what a user takes away of a trained model into a folder.

    Args:
        inputs: ``model`` and ``trained``.
        folder: where to; it is not there yet.
        tokenizer: the model's.
        record: the chat format it was trained in.
        card: its ``README.md``.
        is_judge: publish the whole model and no adapter: a judge is opened by its folder alone.
    """
    trained = inputs["trained"]
    if is_judge:
        await whole_model(inputs["model"], trained, folder)
    else:
        shutil.copytree(trained / (ADAPTER if (trained / ADAPTER).is_dir() else MODEL), folder)
    tokenizer.to_folder(folder)
    files.write_bytes(folder / RECORD_FILE, record.to_bytes())
    files.write_text(folder / "README.md", card)


def write_evaluation(inputs: Mapping[str, Path], compared: Sequence[Compared], folder: Path) -> None:
    """Write what was measured before and after, row by row and summed up; and the win rate, where there is one."""
    lines = [
        json.dumps({"model": side, **json.loads(line)}) + "\n"
        for side in _SIDES
        for line in (inputs[side] / RESULTS).read_text(encoding="utf-8").splitlines()
    ]
    summary: dict[str, Any] = {side: files.read_json(inputs[side] / SUMMARY) for side in _SIDES}
    summary["compared"] = [row.to_json() for row in compared]
    if "win_rate" in inputs:
        lines.append((inputs["win_rate"] / RESULTS).read_text(encoding="utf-8"))
        summary["win_rate"] = files.read_json(inputs["win_rate"] / SUMMARY)
    files.write_text(folder / RESULTS, "".join(lines))
    files.write_json(folder / SUMMARY, summary)
