"""The hub, as far as it can be asked without a network: what is cached, and what an absent model is answered with."""

import socket
import time
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from crucible_train.adapters.hub import download_model, load_dataset
from crucible_train.errors import DataError, ModelError


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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that may be asked, and that nobody can reach: whoever was asked for."""
    asked: list[str] = []

    def unreachable(address, *arguments, **options):
        asked.append(str(address))
        raise OSError("nobody answers")

    def no_pause(seconds):
        raise AssertionError(f"it waits {seconds} s before the next try")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(time, "sleep", no_pause)
    return asked


def test_a_dataset_of_a_hub_that_cannot_be_reached_is_one_line_at_once(
    asked: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("someone/rows")
    start = "dataset: someone/rows: not a file here, and the hub does not give it either: it cannot be reached: "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    assert len(asked) == 1
    assert capfd.readouterr() == ("", "")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_dataset_that_was_fetched_before_is_taken_where_the_hub_cannot_be_reached(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> str:
        assert huggingface_hub.constants.HF_HUB_OFFLINE
        assert datasets.config.HF_HUB_OFFLINE
        return f"the copy of {name}"

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_dataset("someone/rows") == "the copy of someone/rows"
