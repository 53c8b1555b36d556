"""Rendering in several processes.

A worker is this module run as a program. It is told its work on standard input, which stays open as long as anybody
wants that work, and streams Arrow batches, one a job, to standard output; the bad rows of a job travel as its batch's
metadata. Workers have sessions of their own: Ctrl-C is the command's to answer.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from crucible_train.config.sections import DataConfig
from crucible_train.data.render_rows import RenderedRows, RendererSpec, render_rows
from crucible_train.data.rows import BadRow, Reason
from crucible_train.data.tables import EXAMPLES, Dialogues
from crucible_train.errors import RunError

_BAD_ROWS = b"bad_rows"


Job = tuple[Path, np.ndarray]
"""A file of conversations, and the numbers of some of them."""


@contextmanager
def rendered_by_workers(
    jobs: Sequence[Job], spec: RendererSpec, config: DataConfig, num_workers: int
) -> Iterator[Iterator[RenderedRows]]:
    """Start to render jobs; what they give comes in their order, and whoever has it may do something else first.

    Raises:
        RunError: on the way, a worker ended before its work did.
    """
    num_workers = min(num_workers, len(jobs))
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(jobs[n::num_workers], spec, config)) for n in range(num_workers)]
        yield (workers[number % num_workers].next() for number in range(len(jobs)))


class _Worker:
    """One process and the stream of what it makes."""

    def __init__(self, jobs: Sequence[Job], spec: RendererSpec, config: DataConfig) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            start_new_session=True,
        )
        self._reader: pa.ipc.RecordBatchStreamReader | None = None
        work = {
            "jobs": [(str(path.absolute()), rows.tolist()) for path, rows in jobs],
            "spec": [spec.name, dict(spec.options), str(spec.tokenizer_dir.absolute())],
            "config": config.model_dump(mode="json"),
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(work).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # ``next`` says how it ended
            pass

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def next(self) -> RenderedRows:
        try:
            if self._reader is None:
                self._reader = pa.ipc.open_stream(self._process.stdout)
            batch, metadata = self._reader.read_next_batch_with_custom_metadata()
        except (StopIteration, pa.ArrowInvalid, OSError) as error:
            raise RunError(f"a process that renders rows ended early, with status {self._process.wait()}") from error
        bad_rows = [BadRow(**row | {"reason": Reason(row["reason"])}) for row in json.loads(metadata[_BAD_ROWS])]
        return RenderedRows(batch, bad_rows)


def _main() -> None:
    """Do the work that standard input describes, and end when nobody wants it any more."""
    work = json.loads(sys.stdin.buffer.readline())

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    name, options, tokenizer_dir = work["spec"]
    spec = RendererSpec(name, options, Path(tokenizer_dir))
    renderer, max_positions = spec.make(), spec.max_positions()
    dialogues = {path: Dialogues(Path(path)) for path, _ in work["jobs"]}
    config = DataConfig.model_validate(work["config"])
    with pa.ipc.new_stream(sys.stdout.buffer, EXAMPLES) as writer:
        for path, rows in work["jobs"]:
            batch, bad_rows = render_rows(renderer, dialogues[path], np.array(rows), config, max_positions)
            writer.write_batch(batch, custom_metadata={_BAD_ROWS: json.dumps([asdict(row) for row in bad_rows])})
            sys.stdout.buffer.flush()
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
