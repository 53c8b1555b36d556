"""Chat formats: conversations to ids with weights, and answers back to messages."""

from crucible_train.renderers.answers import ParsedResponse, Termination, TextDelta, ThinkingDelta
from crucible_train.renderers.base import Renderer
from crucible_train.renderers.registry import get_renderer, list_renderers, register_renderer, renderer_name
from crucible_train.renderers.tokenizer import FastTokenizer, as_tokenizer
from crucible_train.renderers.train_on_what import TrainOnWhat

__all__ = [
    "FastTokenizer",
    "ParsedResponse",
    "Renderer",
    "Termination",
    "TextDelta",
    "ThinkingDelta",
    "TrainOnWhat",
    "as_tokenizer",
    "get_renderer",
    "list_renderers",
    "register_renderer",
    "renderer_name",
]
