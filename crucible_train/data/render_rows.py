"""Conversations to examples, a batch of rows at a time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crucible_train import files
from crucible_train.config.sections import DataConfig
from crucible_train.data.examples import Example
from crucible_train.data.rows import BadRow, Reason
from crucible_train.data.tables import Dialogues, example_batch
from crucible_train.errors import RenderError
from crucible_train.ports import Tokenizer
from crucible_train.renderers import FastTokenizer, Renderer, TrainOnWhat, get_renderer
from crucible_train.renderers.base import Example as RenderedExample
from crucible_train.types import ImagePart, Message


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
    """Render conversations by their numbers, for a model of so many positions; their text is encoded together."""
    read = [dialogues[row] for row in rows.tolist()]
    rendered = iter(
        renderer.build_many(
            ((messages, dialogue.tools or None) for dialogue in read for messages in dialogue.orders),
            TrainOnWhat(config.train_on),
        )
    )
    good: list[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.float32]]] = []
    bad_rows: list[BadRow] = []
    for row, dialogue in zip(rows.tolist(), read, strict=True):
        orders = [next(rendered) for _ in dialogue.orders]
        problems = (why_not_trained(found, config.max_length, max_positions) for found in orders)
        problem = has_picture(dialogue.messages) or next(filter(None, problems), None)
        if problem is not None:
            bad_rows.append(BadRow(dialogues.where(row), *problem))
            continue
        for found in orders:
            assert not isinstance(found, RenderError)  # else it had a problem
            good += [(row, model_input.to_array(), weights) for model_input, weights in found]
    num_bytes = _num_bytes(renderer.tokenizer, [(tokens, weights) for _, tokens, weights in good])
    examples = [Example(tokens, weights, row, num) for (row, tokens, weights), num in zip(good, num_bytes, strict=True)]
    return RenderedRows(example_batch(examples), bad_rows)


def has_picture(messages: Sequence[Message]) -> tuple[Reason, str] | None:
    """Why a conversation with a picture is set aside."""
    for index, message in enumerate(messages):
        if isinstance(message.content, tuple) and any(isinstance(part, ImagePart) for part in message.content):
            return Reason.NOT_RENDERABLE, f"message {index}: content: a picture, and models are trained on text here"
    return None


def why_not_trained(
    found: Sequence[RenderedExample] | RenderError, max_length: int, max_positions: float
) -> tuple[Reason, str] | None:
    """Why a conversation cannot be trained, if it cannot."""
    if isinstance(found, RenderError):
        reason = Reason.NOTHING_TRAINED if "no token is trained" in str(found) else Reason.NOT_RENDERABLE
        return reason, str(found)
    for model_input, weights in found:
        num_tokens = model_input.length
        if num_tokens > max_length:
            return Reason.TOO_LONG, f"{num_tokens} tokens are more than data.max_length={max_length}"
        if num_tokens > max_positions:
            return Reason.TOO_LONG, f"{num_tokens} tokens are more than the {max_positions} positions of the model"
        if not weights[1:].any():
            return Reason.NOTHING_TRAINED, "no token is trained: nothing stands before its only one"
    return None


def _num_bytes(
    tokenizer: Tokenizer, examples: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]
) -> list[int]:
    """The UTF-8 bytes of the text that is trained in each example, without control tokens."""
    if isinstance(tokenizer, FastTokenizer) and tokenizer.num_bytes is not None and examples:
        tokens, weights = (np.concatenate(some) for some in zip(*examples, strict=True))
        total = np.cumsum(np.where(weights > 0, tokenizer.num_bytes[tokens], 0), dtype=np.int64)
        ends = np.cumsum([some.size for some, _ in examples])
        return np.diff(total[ends - 1], prepend=0).tolist()  # type: ignore[no-any-return]  # int64
    control_ids = np.array(sorted(tokenizer.control_tokens.values()), np.int32)
    trained = (tokens[weights > 0] for tokens, weights in examples)
    texts = tokenizer.decode_batch([some[~np.isin(some, control_ids)].tolist() for some in trained])
    return [len(text.encode()) for text in texts]
