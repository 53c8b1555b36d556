"""Chat formats: conversations to ids with weights, and answers back to messages."""

from crucible_train.renderers.base import ParsedResponse, Renderer, Termination, TrainOnWhat
from crucible_train.renderers.registry import get_renderer, list_renderers, register_renderer, renderer_name
from crucible_train.renderers.tokenizer import FastTokenizer, as_tokenizer

__all__ = [
    "FastTokenizer",
    "ParsedResponse",
    "Renderer",
    "Termination",
    "TrainOnWhat",
    "as_tokenizer",
    "get_renderer",
    "list_renderers",
    "register_renderer",
    "renderer_name",
]
