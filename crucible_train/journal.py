"""What a run tells its trackers, in its own folder: whoever sends it reads it from here.

``tracking/run.json`` says what the run is and how far it has come; ``tracking/events.jsonl`` holds, a line each, what a
run reports besides numbers (settings, texts, tables, pictures, artifacts, links). Numbers are in ``metrics.jsonl``.
"""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from crucible_train import files
from crucible_train.ports import LoggedArtifact, RunInfo

FOLDER = "tracking"
EVENTS_FILE = "events.jsonl"
RUN_FILE = "run.json"
MEDIA = "media"

Phase = Literal["training", "trained", "done", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as its folder describes it to trackers.

    Attributes:
        info: what trackers are told of it.
        trackers: names of those that are to have it.
        phase: ``training``, ``trained`` (every step is there, results may follow), ``done``, ``failed``, or
            ``interrupted`` (it was asked to stop).
    """

    info: RunInfo
    trackers: Sequence[str]
    phase: Phase

    @property
    def has_all_steps(self) -> bool:
        """Whether no further step, and no further part of one, can come."""
        return self.phase in ("trained", "done")

    @property
    def has_ended(self) -> bool:
        """Whether it is done or broke off."""
        return self.phase in ("done", "failed", "interrupted")


class Journal:
    """The events of a run directory. A line that a kill has torn is taken away when the journal is opened."""

    def __init__(self, run_dir: Path) -> None:
        """Open the journal of a run directory; nothing is written before the first event."""
        self._folder = run_dir / FOLDER
        self._path = self._folder / EVENTS_FILE
        self._known = {event["id"] for event in _whole(self._path)}

    def add(self, what: str, **values: Any) -> None:
        """Append an event, unless the same one stands there.

        Raises:
            OSError: it could not be written.
        """
        event = {"event": what, **values}
        number = files.sha256_json(event)[:32]
        if number not in self._known:
            self._folder.mkdir(parents=True, exist_ok=True)
            files.append_line(self._path, json.dumps({"id": number, **event}, ensure_ascii=False, allow_nan=False))
            self._known.add(number)

    def add_image(self, name: str, picture: Path, step: int) -> None:
        """Keep a copy of a PNG file, by its content, and append the event.

        Raises:
            OSError: it could not be read or written.
        """
        kept = self._folder / MEDIA / f"{files.sha256_file(picture)}.png"
        if not kept.is_file():
            files.copy_file(picture, kept)
        self.add("image", name=name, file=f"{MEDIA}/{kept.name}", step=step)

    def add_artifact(self, artifact: LoggedArtifact) -> None:
        """Append an artifact; a path inside the run's folder is kept as from there.

        Raises:
            OSError: it could not be written.
        """
        path, run_dir = artifact.path, self._folder.parent
        if path is not None:
            path = path.absolute()
            path = path.relative_to(run_dir.absolute()) if path.is_relative_to(run_dir.absolute()) else path
        values = {"path": None if path is None else path.as_posix(), "facts": dict(artifact.facts)}
        self.add("artifact", **{**asdict(artifact), **values, "aliases": list(artifact.aliases)})


def begin(info: RunInfo, trackers: Sequence[str], phase: Phase) -> TrackedRun:
    """Write what the run is; its ``tracker_id`` is made once and stays as long as the folder does.

    Raises:
        OSError: it could not be written.
    """
    known = read_run(info.run_dir)
    tracker_id = known.info.tracker_id if known is not None else new_tracker_id(info.run_id)
    run = TrackedRun(replace(info, tracker_id=tracker_id), tuple(trackers), phase)
    if run != known:
        _write(run)
    return run


def set_phase(run_dir: Path, phase: Phase) -> None:
    """Write how far the run has come.

    Raises:
        OSError: it could not be written.
    """
    known = read_run(run_dir)
    if known is not None and known.phase != phase:
        _write(replace(known, phase=phase))


def read_run(run_dir: Path) -> TrackedRun | None:
    """What stands in ``run.json``; None where nothing is tracked, or the file is damaged."""
    values = files.read_json(run_dir / FOLDER / RUN_FILE)
    if not isinstance(values, dict):
        return None
    try:
        info = RunInfo(run_dir=run_dir, **{**values["info"], "tags": tuple(values["info"]["tags"])})
        return TrackedRun(info, tuple(values["trackers"]), values["phase"])
    except (KeyError, TypeError):
        return None


def new_tracker_id(run_id: str) -> str:
    """An id for trackers that no other run has."""
    return f"{plain(run_id)}-{uuid.uuid4().hex[:8]}"


def plain(name: str) -> str:
    """A name of letters, digits, ``.``, ``_`` and ``-``, which files and trackers take."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def replica_file(run_dir: Path, replica: str, ending: str) -> Path:
    """What is kept of a replica beside the journal: its cursor, its lock, or what its follower printed."""
    return run_dir / FOLDER / f"{plain(replica)}.{ending}"


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first; a torn last line is left out."""
    return _whole(run_dir / FOLDER / EVENTS_FILE, is_mended=False)


def _write(run: TrackedRun) -> None:
    info: Mapping[str, Any] = {key: value for key, value in asdict(run.info).items() if key != "run_dir"}
    path = run.info.run_dir / FOLDER / RUN_FILE
    files.write_json(path, {"info": info, "trackers": list(run.trackers), "phase": run.phase})


def _whole(path: Path, *, is_mended: bool = True) -> list[dict[str, Any]]:
    """The events whose line has its end; with ``is_mended`` a line without one is cut off the file."""
    if not path.is_file():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if is_mended and whole != text:
        files.write_bytes(path, whole)
    return [files.parse_json(line) for line in whole.splitlines()]
