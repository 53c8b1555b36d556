"""Qwen3-VL: Qwen3 with pictures.

<|im_start|>user¶<|vision_start|><|image_pad|>...<|image_pad|><|vision_end|>CONTENT<|im_end|>¶

A picture takes as many positions as the image processor gives it: one for 32 x 32 pixels once it is scaled. Where a
part only tells that a picture stands there, it has a single ``<|image_pad|>``, as the template writes it for the
processor to widen. The layouts are those of the published templates of Qwen3-VL-Instruct and Qwen3-VL-Thinking.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from crucible_train.ports import Tokenizer
from crucible_train.renderers.answers import Section
from crucible_train.renderers.images import PictureSize, image_chunk, picture_pieces
from crucible_train.renderers.pieces import Kind, Piece, control_id
from crucible_train.renderers.qwen3 import Qwen3, Qwen3Instruct, ThinkingReader
from crucible_train.types import ImagePart, Message, TextPart, ThinkingPart

MIN_PIXELS, MAX_PIXELS = 65_536, 16_777_216


class _WithPictures(Qwen3Instruct):
    """Content in parts, in the order they are given."""

    def __init__(
        self, tokenizer: Tokenizer, *, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS, **options: Any
    ) -> None:
        """Bind the format to a tokenizer.

        Raises:
            ConfigError: the bounds of a picture's area are none.
        """
        super().__init__(tokenizer, **options)
        self._size = PictureSize(min_pixels, max_pixels)

    @property
    def options(self) -> Mapping[str, Any]:
        """The bounds of a picture's area, and those of the format without pictures."""
        return {**super().options, "min_pixels": self._size.min_pixels, "max_pixels": self._size.max_pixels}

    def prepared(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Read and count the pictures."""
        return [self._with_pictures(index, message) for index, message in enumerate(messages)]

    def content_pieces(self, index: int, message: Message) -> Iterable[Piece]:
        """Words and pictures."""
        if message.content is None or isinstance(message.content, str):
            yield from super().content_pieces(index, message)
            return
        for part in message.content:
            if isinstance(part, TextPart):
                yield Piece(part.text, Kind.TEXT, index, True)
            elif isinstance(part, ImagePart):
                yield from picture_pieces(part.image, index)

    def _with_pictures(self, index: int, message: Message) -> Message:
        if not isinstance(message.content, tuple) or not any(isinstance(part, ImagePart) for part in message.content):
            return message
        placeholder = control_id("<|image_pad|>", self.tokenizer)
        parts = [
            ImagePart(image_chunk(part.image, self._size, placeholder, f"message {index}: content[{number}]"))
            if isinstance(part, ImagePart) and part.image is not None
            else part
            for number, part in enumerate(message.content)
        ]
        return replace(message, content=tuple(parts))


class Qwen3VLInstruct(_WithPictures):
    """The format of Qwen3-VL-Instruct, which has no reasoning. Users and tools show pictures.

    Each conversation's ids begin with those of its prompts, but where content that opens with a newline shares a token
    with its header.

    Args:
        tokenizer: the model's tokenizer.
        min_pixels: smaller pictures are scaled up to about this area.
        max_pixels: larger pictures are scaled down to at most this area.
    """

    name = "qwen3_vl_instruct"
    picture_roles = frozenset({"user", "tool"})
    has_later_systems = False

    def has_words(self, message: Message) -> bool:
        """Whether a newline stands before the first call: also where the content has parts, but no words."""
        if message.content is None or isinstance(message.content, str):
            return bool(message.content)
        return any(not isinstance(part, ThinkingPart) for part in message.content)


class _OpenedThinkingReader(ThinkingReader):
    starts_in = Section.THINKING


class Qwen3VL(_WithPictures, Qwen3):
    """The format of Qwen3-VL-Thinking: its prompt opens the block of reasoning. All but the assistant show pictures.

    A conversation's ids do not begin with those of its own prompts, since earlier reasoning is taken out, and since an
    empty block is other tokens there than after the prompt; with ``strip_thinking_from_history=False`` they do.

    Args:
        tokenizer: the model's tokenizer.
        min_pixels: smaller pictures are scaled up to about this area.
        max_pixels: larger pictures are scaled down to at most this area.
        strip_thinking_from_history: take reasoning out of what came before the last user's message, as the template
            does. Otherwise every answer stays as it was written, with its block of reasoning.
    """

    name = "qwen3_vl"
    reader = _OpenedThinkingReader
    picture_roles = frozenset({"system", "user", "tool"})
    num_prompted = 2
