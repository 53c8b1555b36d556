"""The tokenizers that renderers are tested with. Llama's is fetched, not shipped: see ``fetch_llama3``."""

import json
import lzma
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from crucible_train.renderers import FastTokenizer

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "tokenizers"
LLAMA3 = ROOT / ".cache" / "llama3"
FOLDERS = {"smollm2": ROOT / "crucible_train" / "assets" / "smollm2", "llama3": LLAMA3}
# Tokenizers that differ from another one in the names of some added tokens only.
RENAMED = {
    "deepseek_v3_1": (
        "deepseek_v3",
        {128796: "<｜search▁begin｜>", 128797: "<｜search▁end｜>", 128798: "<think>", 128799: "</think>"},
    ),
    "kimi_k2_thinking": ("kimi_k2", {163606: "<think>", 163607: "</think>"}),
}


@cache
def load_tokenizer(name: str) -> FastTokenizer:
    if name == "llama3" and not LLAMA3.is_dir():
        pytest.skip("Llama's vocabulary is not shipped; `make llama-tokenizer` fetches it")
    if name not in RENAMED:
        return FastTokenizer.from_folder(FOLDERS.get(name, GOLDEN / name))
    base, names = RENAMED[name]
    definition = json.loads(lzma.decompress((GOLDEN / base / "tokenizer.json.xz").read_bytes()))
    for token in definition["added_tokens"]:
        token["content"] = names.get(token["id"], token["content"])
    return FastTokenizer(definition, json.loads((GOLDEN / base / "tokenizer_config.json").read_text()), name)


@pytest.fixture(scope="session")
def tokenizer_named() -> Callable[[str], FastTokenizer]:
    return load_tokenizer


@pytest.fixture(scope="session")
def smollm2() -> FastTokenizer:
    return load_tokenizer("smollm2")


@pytest.fixture(scope="session")
def qwen3() -> FastTokenizer:
    return load_tokenizer("qwen3")
