"""From conversations on disk to tokens and weights on disk."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crucible_train import files
from crucible_train.config.sections import DataConfig
from crucible_train.data.batching import split
from crucible_train.data.preparation import CONVERSATIONS, HELD_OUT, QUARANTINE, SUMMARY
from crucible_train.data.render_rows import RenderedRows, RendererSpec, render_rows
from crucible_train.data.render_workers import Job, rendered_by_workers
from crucible_train.data.rows import Quarantine
from crucible_train.data.tables import Dialogues, write_example_batches
from crucible_train.renderers import Renderer

TRAIN = "train.arrow"
VALIDATION = "validation.arrow"
_ROWS_A_JOB = 512
_ROWS_WORTH_A_WORKER = 32768  # what one process renders in the time that a worker takes to start, twice over


def render(conversations: Path, spec: RendererSpec, config: DataConfig, seed: int, folder: Path) -> Mapping[str, Any]:
    """Split and render the conversations of a folder into ``folder``; what was made.

    Raises:
        DataError: a row is bad and the configuration says stop, or no row is left to train on.
    """
    quarantine = Quarantine(config.on_bad_row)
    dialogues = Dialogues(conversations / CONVERSATIONS)
    if isinstance(config.eval_split, str):
        parts = {TRAIN: (conversations / CONVERSATIONS, np.arange(len(dialogues)))}
        held_out = Dialogues(conversations / HELD_OUT)
        parts[VALIDATION] = (conversations / HELD_OUT, np.arange(len(held_out)))
    else:
        train, validation = split(len(dialogues), config.eval_split, seed)
        parts = {TRAIN: (conversations / CONVERSATIONS, train), VALIDATION: (conversations / CONVERSATIONS, validation)}
    renderer = spec.make()
    spec = replace(spec, options=dict(renderer.options))  # with the date it writes, which workers must write too
    summary: dict[str, Any] = {"renderer": spec.name, "renderer_options": spec.options}
    jobs = {name: _jobs(path, rows) for name, (path, rows) in parts.items()}
    with _rendered([job for some in jobs.values() for job in some], spec, renderer, config) as rendered:
        summary["tokenizer_sha256"] = renderer.tokenizer.sha256  # while workers start
        for name, (_, rows) in parts.items():
            totals = _Totals()
            num_bad_before = len(quarantine.rows)
            num_examples = write_example_batches(
                folder / name, _good(islice(rendered, len(jobs[name])), quarantine, totals)
            )
            num_good = rows.size - (len(quarantine.rows) - num_bad_before)
            is_named = name == VALIDATION and isinstance(config.eval_split, str)
            quarantine.settle(
                num_good, "data.eval_split" if is_named else "dataset", may_be_empty=name == VALIDATION and not is_named
            )
            summary[name.removesuffix(".arrow")] = {"num_examples": num_examples} | totals.facts()
    quarantine.close(folder / QUARANTINE)
    summary |= {"num_bad_rows": len(quarantine.rows), "bad_rows": quarantine.counts()}
    files.write_json(folder / SUMMARY, summary)
    return summary


@dataclass(slots=True)
class _Totals:
    """Counts of one part."""

    num_tokens: int = 0
    num_trained_tokens: int = 0
    max_tokens: int = 0

    def add(self, batch: pa.RecordBatch) -> None:
        tokens, weights = batch.column("tokens"), batch.column("weights")
        self.num_tokens += len(tokens.values)
        self.num_trained_tokens += int(np.count_nonzero(weights.values.to_numpy()))
        self.max_tokens = max(self.max_tokens, pc.max(pc.list_value_length(tokens)).as_py())

    def facts(self) -> dict[str, int]:
        return {
            "num_tokens": self.num_tokens,
            "num_trained_tokens": self.num_trained_tokens,
            "max_tokens": self.max_tokens,
        }


def _good(rendered: Iterable[RenderedRows], quarantine: Quarantine, totals: _Totals) -> Iterator[pa.RecordBatch]:
    for batch, bad_rows in rendered:
        for bad_row in bad_rows:
            quarantine.add(bad_row)
        if batch.num_rows:
            totals.add(batch)
            yield batch


def _jobs(path: Path, rows: np.ndarray) -> Sequence[Job]:
    return [(path, rows[start : start + _ROWS_A_JOB]) for start in range(0, rows.size, _ROWS_A_JOB)]


@contextmanager
def _rendered(
    jobs: Sequence[Job], spec: RendererSpec, renderer: Renderer, config: DataConfig
) -> Iterator[Iterator[RenderedRows]]:
    """Render jobs in order: here, or in worker processes where there are enough rows to pay."""
    num_rows = sum(rows.size for _, rows in jobs)
    num_workers = config.num_workers or min(os.cpu_count() or 1, num_rows // _ROWS_WORTH_A_WORKER)
    if num_workers > 1 and len(jobs) > 1:
        with rendered_by_workers(jobs, spec, config, num_workers) as rendered:
            yield rendered
        return
    dialogues, max_positions = {path: Dialogues(path) for path, _ in jobs}, spec.max_positions()
    yield (render_rows(renderer, dialogues[path], rows, config, max_positions) for path, rows in jobs)
