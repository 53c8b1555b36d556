"""The hub, as far as it can be asked without a network: what is cached, and what an absent model is answered with."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from crucible_train.adapters.hub import download_model
from crucible_train.errors import ModelError


@pytest.fixture
def cached_model() -> Path:
    """A model that was fetched before, as the hub's library keeps it."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--someone--tiny"
    commit = "0" * 40
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_a_model_that_was_fetched_before_is_found_without_a_network(cached_model):
    assert download_model("someone/tiny", ["*.json"]) == cached_model


@pytest.mark.parametrize("model", ["someone/nothing", "a/b/c", "with space/x", "-bad-/..x", "x" * 200])
def test_a_model_that_is_not_there_is_one_line_that_names_it(model):
    with pytest.raises(ModelError) as caught:
        download_model(model, ["*.json"])
    assert str(caught.value).startswith(f"model: {model}: not a folder here, and the hub does not give it either: ")
    assert "\n" not in str(caught.value)
