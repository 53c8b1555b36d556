"""Preparing a data set from the bytes of one file, and reading back what was made of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crucible_train.adapters.row_store.store import RowStore
from crucible_train.config.sections import DataConfig
from crucible_train.data.preparation import CONVERSATIONS, QUARANTINE, prepare
from crucible_train.data.render_rows import RendererSpec
from crucible_train.data.tables import Dialogues


@dataclass(frozen=True)
class Prepared:
    """What a preparation left: its summary, the conversations as plain dictionaries and the rows set aside."""

    folder: Path
    summary: Mapping[str, Any]

    @property
    def dialogues(self) -> Dialogues:
        return Dialogues(self.folder / CONVERSATIONS)

    @property
    def conversations(self) -> list[list[dict[str, Any]]]:
        found = self.dialogues
        return [[message.to_dict() for message in found[index].messages] for index in range(len(found))]

    @property
    def quarantined(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / QUARANTINE).read_text().splitlines()]


Prepare = Callable[..., Prepared]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    """Prepare a source: a path or URL, or the bytes of a file called ``rows.jsonl``."""

    def run(source: str | Path | bytes, **options: Any) -> Prepared:
        if isinstance(source, bytes):
            path = tmp_path / "rows.jsonl"
            path.write_bytes(source)
            source = path
        folder = tmp_path / "prepared"
        return Prepared(folder, prepare(RowStore(), str(source), DataConfig(**options), folder))

    return run


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> RendererSpec:
    """The built-in model's chat format over a tokenizer whose tokens are bytes: lengths can be counted by hand."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return RendererSpec("smollm2", {}, folder)
