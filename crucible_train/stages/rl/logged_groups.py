"""The groups of a run that its report shows answer by answer, kept a file a step."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from crucible_train import files
from crucible_train.report.logtree import LoggedGroup
from crucible_train.rl.batch import ScoredGroup
from crucible_train.rl.group_json import group_from_json, group_to_json

FOLDER = "rollouts"


def keep(folder: Path, step: int, groups: Sequence[ScoredGroup]) -> None:
    """Write the groups of a step into a run's folder."""
    rows = [{"group": group_to_json(one.group), "advantages": one.advantages_G.tolist()} for one in groups]
    files.write_json(folder / FOLDER / f"step-{step:08d}.json", {"step": step, "groups": rows})


def kept(folder: Path) -> Iterator[LoggedGroup]:
    """What was kept there, in the order of steps."""
    for path in sorted((folder / FOLDER).glob("step-*.json")):
        value = files.read_json(path)
        for row in value["groups"]:
            yield LoggedGroup(value["step"], group_from_json(row["group"]), tuple(row["advantages"]))
