"""The two tokenizers that renderers are tested with: SmolLM2's, which is shipped, and Qwen3's, which normalises."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from crucible_train.renderers import FastTokenizer

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "smollm2": ROOT / "crucible_train" / "assets" / "smollm2",
    "qwen3": ROOT / "tests" / "golden" / "tokenizers" / "qwen3",
}


@pytest.fixture(scope="session")
def tokenizer_named() -> Callable[[str], FastTokenizer]:
    return cache(lambda name: FastTokenizer.from_folder(FOLDERS[name]))


@pytest.fixture(scope="session")
def smollm2(tokenizer_named: Callable[[str], FastTokenizer]) -> FastTokenizer:
    return tokenizer_named("smollm2")


@pytest.fixture(scope="session")
def qwen3(tokenizer_named: Callable[[str], FastTokenizer]) -> FastTokenizer:
    return tokenizer_named("qwen3")
