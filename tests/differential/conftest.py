"""The tokenizers of the reference data."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from crucible_train.renderers import FastTokenizer


@pytest.fixture(scope="session")
def tokenizer_named() -> Callable[[str], FastTokenizer]:
    path = Path(__file__).parents[1] / "renderers" / "conftest.py"
    spec = importlib.util.spec_from_file_location("renderers_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[str], FastTokenizer] = module.load_tokenizer
    return found
