"""Which renderer a model was trained with: a file that travels with its weights.

    renderer.json    {"name": "qwen3", "options": {...}, "tokenizer_sha256": "..."}

A model that is prompted in another format than it was trained in is worse, and nothing shows it. So a folder that holds
this file decides the format of its model, and a wish that differs from it is an error.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from crucible_train import files
from crucible_train.errors import ConfigError, ModelError
from crucible_train.renderers.base import Renderer

RECORD_FILE = "renderer.json"
_OVERRIDE = f"leave the field out, or remove {RECORD_FILE} from that folder to use another format all the same"


@dataclass(frozen=True, slots=True)
class RendererRecord:
    """A renderer's name and options, and the digest of the tokenizer it is bound to."""

    name: str
    options: Mapping[str, Any]
    tokenizer_sha256: str

    @classmethod
    def of(cls, name: str, renderer: Renderer) -> Self:
        """The record of a renderer that is registered by this name."""
        return cls(name, dict(renderer.options), renderer.tokenizer.sha256)

    @classmethod
    def from_folder(cls, folder: Path) -> Self | None:
        """Read the record of a model or a checkpoint; None where there is none.

        Raises:
            ModelError: there is one, but it cannot be read.
        """
        path = folder / RECORD_FILE
        if not path.is_file():
            return None
        match files.read_json(path):
            case {"name": str(name), "options": dict(options), "tokenizer_sha256": str(digest)}:
                return cls(name, options, digest)
        raise ModelError(f"model: {path}: it does not hold a renderer's name, options and tokenizer_sha256")

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def check_name(self, wanted: str, folder: Path) -> None:
        """See that the renderer that is asked for is this one; ``folder`` is where the record was read.

        Raises:
            ConfigError: it is another; the text names the field and both values.
        """
        if wanted != self.name:
            raise _mismatch("data.renderer", wanted, folder, self.name)

    def check_made(self, made: Renderer, asked: Iterable[str], folder: Path) -> None:
        """See that a renderer made by this record, with some options replaced, is still the recorded one.

        Args:
            made: the renderer.
            asked: the options that somebody gave; the others follow the record.
            folder: where the record was read.

        Raises:
            ConfigError: an option differs.
            ModelError: the tokenizer is another.
        """
        for option in asked:
            wanted, recorded = made.options.get(option), self.options.get(option)
            if wanted != recorded:
                raise _mismatch(f"data.renderer_options.{option}", wanted, folder, recorded)
        if made.tokenizer.sha256 != self.tokenizer_sha256:
            raise ModelError(
                f"model: {folder}: its tokenizer has the digest {made.tokenizer.sha256[:12]}, but it was trained with "
                f"{self.tokenizer_sha256[:12]}; put that one back, or remove {RECORD_FILE} from that folder"
            )


def _mismatch(field: str, wanted: Any, folder: Path, recorded: Any) -> ConfigError:
    return ConfigError(f"{field}: {wanted!r} is asked for, but {folder} was trained with {recorded!r}; {_OVERRIDE}")
