"""Metrics as TensorBoard's event files, written by its own writer; neither torch nor TensorFlow is needed."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.ports import Cell, LoggedArtifact, Opened, RunInfo, RunStatus

FOLDER_VARIABLE = "TENSORBOARD_LOGGING_DIR"
"""Where runs are put, as for other libraries; ``tensorboard`` beside the run's folder where it is not set."""

_LOOK_EVERY_S = 0.05
_NUM_LOOKS = 40


class TensorBoardLogger(QuietLogger):
    """Writes a folder of event files a run, named by its ``tracker_id``; TensorBoard keeps numbers as float32.

    All numbers of a step are one record, so that a kill leaves the step whole or leaves it out.
    """

    def __init__(self) -> None:
        """Nothing is open before the run starts."""
        self._writer: EventFileWriter | None = None
        self._step = -1
        self._metrics: dict[str, float] = {}

    def start(self, run: RunInfo) -> Opened:
        """Begin a new event file beside those the run has.

        Raises:
            OSError: the folder cannot be read or written.
        """
        given = os.environ.get(FOLDER_VARIABLE)
        folder = (Path(given).expanduser() if given else run.run_dir.parent / "tensorboard") / (
            run.tracker_id or run.run_id
        )
        known = list(folder.glob("events.out.tfevents.*"))
        last_step = max((step for path in known for step in _steps(path)), default=-1)
        _wait_for_later_name(known)
        self._writer = EventFileWriter(str(folder), flush_secs=3600)
        return Opened(folder.absolute().as_uri(), last_step, is_new=not known)

    def log_hparams(self, values: Mapping[str, Cell]) -> None:
        """Record the settings for TensorBoard's table of them; null as ``null``."""
        self._add(hparams_pb({name: "null" if value is None else value for name, value in values.items()}), 0)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Put numbers into the record of their step."""
        if step != self._step:
            self._end_step()
            self._step = step
        self._metrics |= metrics

    def log_text(self, name: str, text: str, step: int) -> None:
        """Record a text, shown as it is."""
        shown = "".join(f"    {line}\n" for line in text.split("\n"))
        value = Summary.Value(
            tag=name, metadata=create_summary_metadata(None, None), tensor=make_tensor_proto([shown.encode()])
        )
        self._add(Summary(value=[value]), step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Record a table as a text in Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
        value = Summary.Value(
            tag=name, metadata=create_summary_metadata(None, None), tensor=make_tensor_proto([text.encode()])
        )
        self._add(Summary(value=[value]), step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Record a picture.

        Raises:
            OSError: it cannot be read.
        """
        value = Summary.Value(tag=name, image=Summary.Image(encoded_image_string=path.read_bytes()))
        self._add(Summary(value=[value]), step)

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Record what it is, as a text."""
        facts = {"kind": artifact.kind, "sha256": artifact.digest, "path": artifact.path and str(artifact.path)}
        text = json.dumps(facts | dict(artifact.facts), indent=2)
        self.log_text(f"{'input' if artifact.is_input else 'output'}/{artifact.name}", text, max(self._step, 0))

    def link(self, name: str, url: str) -> None:
        """Record an address, as a text."""
        self.log_text(f"link/{name}", url, max(self._step, 0))

    def flush(self) -> None:
        """Write what is pending.

        Raises:
            OSError: it cannot be written.
        """
        self._end_step()
        if self._writer is not None:
            self._writer.flush()

    def finish(self, status: RunStatus) -> None:
        """Write what is pending and close the file."""
        if self._writer is not None:
            self.flush()
            self._writer.close()
            self._writer = None

    def _end_step(self) -> None:
        if self._metrics:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in sorted(self._metrics.items())]
            self._metrics = {}
            self._add_event(Summary(value=values), self._step)

    def _add(self, summary: Summary, step: int) -> None:
        self._end_step()
        self._add_event(summary, step)

    def _add_event(self, summary: Summary, step: int) -> None:
        assert self._writer is not None, "the run has not started"
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _wait_for_later_name(known: Sequence[Path]) -> None:
    """TensorBoard reads files in the order of their names, which hold the second they were made in."""
    seconds = [int(part) for path in known if (part := path.name.split(".")[3]).isdigit()]
    for _ in range(_NUM_LOOKS):
        if time.time() >= max(seconds, default=0) + 1:
            return
        time.sleep(_LOOK_EVERY_S)


def _steps(path: Path) -> Iterator[int]:
    """The steps of which a file holds numbers; a torn last record is left out."""
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        if any(value.WhichOneof("value") == "simple_value" for value in event.summary.value):
            yield event.step


def _cell(value: Cell) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
