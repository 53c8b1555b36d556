"""Pictures in a conversation: fetched, and counted in positions as Qwen's image processor will have them."""

import base64
import binascii
import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from crucible_train.errors import ConfigError, RenderError
from crucible_train.renderers.pieces import Kind, Piece
from crucible_train.types import ImageChunk

_FORMATS: dict[str | None, Literal["png", "jpeg"]] = {"PNG": "png", "JPEG": "jpeg"}
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
_MAX_ASPECT = 200


@dataclass(frozen=True, slots=True)
class PictureSize:
    """How a picture is scaled before it is cut into patches.

    Attributes:
        min_pixels: smaller ones are scaled up to about this area.
        max_pixels: larger ones are scaled down to at most this area.
        patch_size: the side of a patch, in pixels.
        merge_size: how many patches along each side make one position.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int = 16
    merge_size: int = 2

    def __post_init__(self) -> None:
        """Check the bounds."""
        for option in ("min_pixels", "max_pixels"):
            pixels = getattr(self, option)
            if not isinstance(pixels, int) or pixels < 1:
                raise ConfigError(
                    f"data.renderer_options.{option}: must be a whole number of at least 1, not {pixels!r}"
                )
        if self.min_pixels > self.max_pixels:
            raise ConfigError(
                f"data.renderer_options.min_pixels: {self.min_pixels} is more than max_pixels, {self.max_pixels}"
            )

    def num_positions(self, height: int, width: int) -> int:
        """How many positions a picture of this size takes."""
        side = self.patch_size * self.merge_size
        rows, columns = round(height / side), round(width / side)
        if rows * columns * side**2 > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / scale / side))
            columns = max(1, math.floor(width / scale / side))
        elif rows * columns * side**2 < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            rows, columns = math.ceil(height * scale / side), math.ceil(width * scale / side)
        return rows * columns


def image_chunk(picture: Any, size: PictureSize, placeholder_id: int, where: str) -> ImageChunk:
    """A picture at hand and counted.

    Args:
        picture: encoded bytes, a path, a ``data:`` URL, or a Pillow image.
        size: how it will be scaled.
        placeholder_id: what stands at its positions in plain ids.
        where: the message and field, for errors.

    Raises:
        RenderError: it cannot be read, it is none, or it is too long and narrow.
    """
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - needed for pictures only
    except ImportError as error:
        raise RenderError(f"{where}: pictures need Pillow: pip install pillow") from error
    data = None if isinstance(picture, Image.Image) else _bytes(picture, where)
    try:
        image = picture if data is None else Image.open(io.BytesIO(data))
        form = None if data is None else _FORMATS.get(image.format)
        if data is None or form is None:
            data, form = _as_png(image), "png"
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise RenderError(f"{where}: not a picture that can be read: {error}") from error
    width, height = image.size
    if not width or not height or max(width, height) / min(width, height) > _MAX_ASPECT:
        raise RenderError(
            f"{where}: a picture of {width} x {height} pixels; one side may be {_MAX_ASPECT} times the other"
        )
    return ImageChunk(data, form, size.num_positions(height, width), placeholder_id)


def picture_pieces(chunk: ImageChunk | None, message: int) -> Iterable[Piece]:
    """A picture between its markers; where only its place is known, one position, as the template has it."""
    yield Piece("<|vision_start|>", Kind.CONTROL, message)
    if chunk is None:
        yield Piece("<|image_pad|>", Kind.CONTROL, message)
    else:
        yield Piece("<|image_pad|>", Kind.IMAGE, message, image=chunk)
    yield Piece("<|vision_end|>", Kind.CONTROL, message)


def _bytes(picture: Any, where: str) -> bytes:
    """The encoded picture.

    Raises:
        RenderError: it cannot be had.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if not isinstance(picture, str | os.PathLike):
        raise RenderError(
            f"{where}: a picture is given as bytes, a path, a data: URL or a Pillow image, not {type(picture).__name__}"
        )
    name = os.fspath(picture)
    scheme = name.partition(":")[0].lower() if isinstance(name, str) else ""
    if scheme == "data":
        return _data_url(name, where)
    if scheme in {"http", "https"}:
        raise RenderError(f"{where}: pictures are not fetched from the network: {name[:100]}")
    try:
        return Path(unquote(urlsplit(name).path) if scheme == "file" else name).read_bytes()
    except (OSError, ValueError) as error:
        raise RenderError(f"{where}: the picture cannot be read: {error}") from error


def _data_url(url: str, where: str) -> bytes:
    header, comma, body = url.partition(",")
    try:
        if comma:
            data = unquote_to_bytes(body)
            return base64.b64decode(data, validate=True) if header.lower().endswith(";base64") else data
    except binascii.Error as error:
        raise RenderError(f"{where}: the data: URL is not base64: {error}") from error
    raise RenderError(f"{where}: a data: URL without data")


def _as_png(image: Any) -> bytes:
    made = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(made, "PNG")
    return made.getvalue()
