"""How far a tracker has come: ``tracking/NAME.json`` of a run directory, written when what was sent is safe."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from crucible_train import files

State = Literal["new", "sending", "unavailable", "refused", "left", "done"]


@dataclass(frozen=True, slots=True, order=True)
class LeftOut:
    """An event that a tracker did not take.

    Attributes:
        number: its place in the journal, from 0.
        why: what it is and why, in a line without secrets.
    """

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a tracker holds of a run.

    Attributes:
        tracker: its name in ``report_to``.
        tracker_id: what the run is called there.
        url: where a person finds it; None where there is no such page, or it is not known yet.
        last_step: the newest step that is safe there; -1 for none.
        num_events: how many of the journal's events are done with, from its beginning; those left out are among them.
        state: ``done`` when all of a finished run is there, ``left`` when nothing more could be sent yet,
            ``unavailable`` and ``refused`` when the last try failed.
        problem: why, in a line without secrets.
        left_out: the events that the tracker did not take, which every later follower tries again.
    """

    tracker: str
    tracker_id: str
    url: str | None = None
    last_step: int = -1
    num_events: int = 0
    state: State = "new"
    problem: str | None = None
    left_out: tuple[LeftOut, ...] = ()


def read_cursor(path: Path) -> Cursor | None:
    """What stands in the file; None where there is none, or it is damaged."""
    values = files.read_json(path)
    if not isinstance(values, dict):
        return None
    try:
        left_out = tuple(LeftOut(**one) for one in values.get("left_out") or ())
        found = Cursor(**{**values, "left_out": left_out})
    except TypeError:
        return None
    has_counts = isinstance(found.last_step, int) and isinstance(found.num_events, int)
    return found if has_counts and all(isinstance(text, str | None) for text in (found.url, found.problem)) else None


def write_cursor(path: Path, cursor: Cursor) -> None:
    """Write it, whole or not at all, into the folder of a run that is there.

    Raises:
        OSError: it could not be written, or the run has been deleted.
    """
    with files.atomic_open(path, makes_folder=False) as file:
        file.write(json.dumps(asdict(cursor), indent=2, ensure_ascii=False).encode() + b"\n")
