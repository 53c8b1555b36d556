"""SmolLM2-Instruct: ChatML with a default system message.

<|im_start|>system¶You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>¶
<|im_start|>user¶CONTENT<|im_end|>¶
<|im_start|>assistant¶CONTENT<|im_end|>¶        (trained: CONTENT<|im_end|>)
"""

from collections.abc import Iterable, Sequence

from crucible_train.renderers.base import Renderer, Tools
from crucible_train.renderers.pieces import NO_MESSAGE, Kind, Piece
from crucible_train.types import Message

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
START = Piece("<|im_start|>", Kind.CONTROL)


class SmolLM2(Renderer):
    """The format of SmolLM2-Instruct, all sizes."""

    name = "smollm2"
    stop_tokens = ("<|im_end|>",)
    verbatim = ()

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """Every message alike; a default system message where the conversation does not open with one."""
        if messages[0].role != "system":
            yield from _turn(NO_MESSAGE, "system", DEFAULT_SYSTEM)
        for index, message in enumerate(messages):
            yield from _turn(index, message.role, message.text)

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The conversation and an open header."""
        yield from self.conversation_pieces(messages, tools)
        yield START
        yield Piece(f"{role}\n")


def _turn(index: int, role: str, text: str) -> Iterable[Piece]:
    yield Piece("<|im_start|>", Kind.CONTROL, index)
    yield Piece(f"{role}\n", Kind.TEXT, index)
    yield Piece(text, Kind.TEXT, index, is_output=True)
    yield Piece("<|im_end|>", Kind.CONTROL, index, is_output=True)
    yield Piece("\n", Kind.TEXT, index)
