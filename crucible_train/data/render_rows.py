"""Conversations to examples, a batch of rows at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from crucible_train import files
from crucible_train.config.sections import DataConfig
from crucible_train.data.examples import Example
from crucible_train.data.rows import BadRow, Reason
from crucible_train.data.tables import Dialogues, example_batch
from crucible_train.errors import RenderError
from crucible_train.renderers import FastTokenizer, Renderer, TrainOnWhat, get_renderer


@dataclass(frozen=True, slots=True)
class RendererSpec:
    """All that is needed to make a renderer again, in another process or another year."""

    name: str
    options: Mapping[str, Any]
    tokenizer_dir: Path

    def max_positions(self) -> float:
        """How many positions the model beside the tokenizer has; infinite where it does not say."""
        config = files.read_json(self.tokenizer_dir / "config.json") or {}
        return config.get("text_config", config).get("max_position_embeddings") or math.inf

    def make(self) -> Renderer:
        """The renderer."""
        return get_renderer(self.name, FastTokenizer.from_folder(self.tokenizer_dir), **self.options)


class RenderedRows(NamedTuple):
    """The examples of some conversations, in order, as a batch of the examples' table; and the bad rows among them."""

    examples: pa.RecordBatch
    bad_rows: list[BadRow]


def render_rows(
    renderer: Renderer, dialogues: Dialogues, rows: np.ndarray, config: DataConfig, max_positions: float
) -> RenderedRows:
    """Render conversations by their numbers, for a model of so many positions."""
    examples: list[Example] = []
    bad_rows: list[BadRow] = []
    for row in rows.tolist():
        found = render_dialogue(renderer, dialogues, row, config, max_positions)
        if isinstance(found, BadRow):
            bad_rows.append(found)
        else:
            examples.extend(found)
    return RenderedRows(example_batch(examples), bad_rows)


def render_dialogue(
    renderer: Renderer, dialogues: Dialogues, row: int, config: DataConfig, max_positions: float
) -> list[Example] | BadRow:
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
        if tokens.size > max_positions:
            problem = f"{tokens.size} tokens are more than the {max_positions} positions of the model"
            return BadRow(where, Reason.TOO_LONG, problem)
        if not weights[1:].any():
            return BadRow(where, Reason.NOTHING_TRAINED, "no token is trained: nothing stands before its only one")
        text = [token for token in tokens[weights > 0].tolist() if token not in control_ids]
        num_bytes = len(renderer.tokenizer.decode(text).encode())
        made.append(Example(tokens, weights, row, num_bytes))
    return made
