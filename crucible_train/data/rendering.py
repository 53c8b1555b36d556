"""From conversations on disk to tokens and weights on disk."""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from crucible_train import files
from crucible_train.config.sections import DataConfig
from crucible_train.data.batching import split
from crucible_train.data.examples import Example
from crucible_train.data.preparation import CONVERSATIONS, HELD_OUT, QUARANTINE, SUMMARY
from crucible_train.data.rows import BadRow, Quarantine, Reason
from crucible_train.data.tables import Dialogues, write_examples
from crucible_train.errors import RenderError
from crucible_train.renderers import FastTokenizer, Renderer, TrainOnWhat, get_renderer

TRAIN = "train.arrow"
VALIDATION = "validation.arrow"
_ROWS_A_JOB = 512
_ROWS_WORTH_A_WORKER = 8192


@dataclass(frozen=True, slots=True)
class RendererSpec:
    """All that is needed to make a renderer again, in another process or another year."""

    name: str
    options: Mapping[str, Any]
    tokenizer_dir: Path

    def make(self) -> Renderer:
        """The renderer."""
        return get_renderer(self.name, FastTokenizer.from_folder(self.tokenizer_dir), **self.options)


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
    summary: dict[str, Any] = {"renderer": spec.name, "renderer_options": dict(spec.options)}
    summary["tokenizer_sha256"] = renderer.tokenizer.sha256
    for name, (path, rows) in parts.items():
        totals = _Totals()
        num_bad_before = len(quarantine.rows)
        num_examples = write_examples(
            folder / name, _good(_rendered(path, rows, spec, renderer, config), quarantine, totals)
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


def render_dialogue(renderer: Renderer, dialogues: Dialogues, row: int, config: DataConfig) -> list[Example] | BadRow:
    """The examples of one conversation, or why there are none."""
    where = dialogues.where(row)
    dialogue = dialogues[row]
    control_ids = set(renderer.tokenizer.control_tokens.values())
    try:
        examples = renderer.build_supervised_examples(
            dialogue.messages, TrainOnWhat(config.train_on), tools=dialogue.tools or None
        )
    except RenderError as error:
        reason = Reason.NOTHING_TRAINED if "no token is trained" in str(error) else Reason.NOT_RENDERABLE
        return BadRow(where, reason, str(error))
    made = []
    for model_input, weights in examples:
        tokens = model_input.to_array()
        if tokens.size > config.max_length:
            problem = f"{tokens.size} tokens are more than data.max_length={config.max_length}"
            return BadRow(where, Reason.TOO_LONG, problem)
        if not weights[1:].any():
            return BadRow(where, Reason.NOTHING_TRAINED, "no token is trained: nothing stands before its only one")
        text = [token for token in tokens[weights > 0].tolist() if token not in control_ids]
        num_bytes = len(renderer.tokenizer.decode(text).encode())
        made.append(Example(tokens, weights, row, num_bytes))
    return made


@dataclass(slots=True)
class _Totals:
    """Counts of one part."""

    num_tokens: int = 0
    num_trained_tokens: int = 0
    max_tokens: int = 0

    def add(self, example: Example) -> None:
        self.num_tokens += example.tokens_T.size
        self.num_trained_tokens += int((example.weights_T > 0).sum())
        self.max_tokens = max(self.max_tokens, example.tokens_T.size)

    def facts(self) -> dict[str, int]:
        return {
            "num_tokens": self.num_tokens,
            "num_trained_tokens": self.num_trained_tokens,
            "max_tokens": self.max_tokens,
        }


def _good(rendered: Iterable[list[Example] | BadRow], quarantine: Quarantine, totals: _Totals) -> Iterator[Example]:
    for found in rendered:
        if isinstance(found, BadRow):
            quarantine.add(found)
            continue
        for example in found:
            totals.add(example)
            yield example


def _rendered(
    path: Path, rows: np.ndarray, spec: RendererSpec, renderer: Renderer, config: DataConfig
) -> Iterator[list[Example] | BadRow]:
    """Render rows in order: here, or in worker processes where there are enough of them to pay."""
    num_workers = config.num_workers or min(os.cpu_count() or 1, rows.size // _ROWS_WORTH_A_WORKER)
    if num_workers <= 1:
        dialogues = Dialogues(path)
        yield from (render_dialogue(renderer, dialogues, int(row), config) for row in rows)
        return
    jobs = [rows[start : start + _ROWS_A_JOB] for start in range(0, rows.size, _ROWS_A_JOB)]
    with ProcessPoolExecutor(
        num_workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(spec, path, config, os.getpid()),
    ) as pool:
        for batch in pool.map(_render_job, jobs):
            yield from batch


_worker: tuple[Renderer, Dialogues, DataConfig] | None = None


def _start_worker(spec: RendererSpec, path: Path, config: DataConfig, parent: int) -> None:
    """Load what a worker needs, and end it when its parent is gone, however that ended."""
    global _worker  # noqa: PLW0603 - a worker process has one task, and this is how pools hand it over
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = (spec.make(), Dialogues(path), config)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _render_job(rows: Sequence[int]) -> list[list[Example] | BadRow]:
    assert _worker is not None
    renderer, dialogues, config = _worker
    return [render_dialogue(renderer, dialogues, int(row), config) for row in rows]
