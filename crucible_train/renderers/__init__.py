"""Chat formats: conversations to ids with weights, and answers back to messages."""

from crucible_train.renderers.answers import ParsedResponse, Termination, TextDelta, ThinkingDelta
from crucible_train.renderers.base import Renderer
from crucible_train.renderers.record import RendererRecord
from crucible_train.renderers.registry import (
    find_renderer,
    get_renderer,
    list_renderers,
    register_renderer,
    renderer_for,
    renderer_name,
)
from crucible_train.renderers.tokenizer import FastTokenizer, as_tokenizer
from crucible_train.renderers.train_on_what import TrainOnWhat

__all__ = [
    "FastTokenizer",
    "ParsedResponse",
    "Renderer",
    "RendererRecord",
    "Termination",
    "TextDelta",
    "ThinkingDelta",
    "TrainOnWhat",
    "as_tokenizer",
    "find_renderer",
    "get_renderer",
    "list_renderers",
    "register_renderer",
    "renderer_for",
    "renderer_name",
]
