"""The composition root: what is missing or half implemented is told by name, at once."""

from pathlib import Path
from typing import Any

import pytest

from crucible_train import wiring
from crucible_train.errors import ConfigError
from crucible_train.ports import MetricsLogger, SamplingClient


class Whole:
    """A sampling client as the port wants it, and more."""

    async def sample(self, prompt: Any, num_samples: int, params: Any, extra: int = 0) -> list[Any]:
        return []

    async def compute_logprobs(self, model_input: Any) -> list[Any]:
        return []

    async def top_logprobs(self, model_input: Any, k: int) -> list[Any]:
        return []


class LacksMethod:
    async def sample(self, prompt: Any, num_samples: int, params: Any) -> list[Any]:
        return []


class LacksParameter(Whole):
    async def sample(self, prompt: Any, num_samples: int) -> list[Any]:  # type: ignore[override]
        return []


class NotAsync(Whole):
    def compute_logprobs(self, model_input: Any) -> list[Any]:  # type: ignore[override]
        return []


class NoMethod(Whole):
    sample = "a text"  # type: ignore[assignment]


def test_a_whole_adapter_is_handed_through() -> None:
    adapter = Whole()
    assert wiring.conforming(adapter, SamplingClient, "sampling client") is adapter


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (LacksMethod(), "sampling client: adapter LacksMethod lacks SamplingClient.compute_logprobs"),
        (
            LacksParameter(),
            "sampling client: adapter LacksParameter: SamplingClient.sample lacks the parameter 'params'",
        ),
        (NotAsync(), "sampling client: adapter NotAsync: SamplingClient.compute_logprobs must be async"),
        (NoMethod(), "sampling client: adapter NoMethod: SamplingClient.sample is not a method"),
        (None, "sampling client: adapter NoneType lacks SamplingClient.compute_logprobs"),
    ],
)
def test_what_an_adapter_lacks_is_named(adapter: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wiring.conforming(adapter, SamplingClient, "sampling client")
    assert str(caught.value) == told


def test_an_async_method_where_the_port_has_a_plain_one_is_named() -> None:
    class Late:
        def start(self, run: Any) -> None: ...
        async def log_metrics(self, metrics: Any, step: int) -> None: ...
        def finish(self, status: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"adapter Late: MetricsLogger.log_metrics must not be async"):
        wiring.conforming(Late(), MetricsLogger, "logger late")


def test_a_port_that_is_not_set_is_a_configuration_error_that_names_the_field() -> None:
    assert wiring.required("adapter", "vector store", "retrieval.store") == "adapter"
    with pytest.raises(ConfigError) as caught:
        wiring.required(None, "vector store", "retrieval.store")
    assert str(caught.value) == "retrieval.store: no vector store is set"


def test_an_unknown_logger_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"^report_to: 'wandbb' is unknown; known are console$"):
        wiring.metrics_logger(["console", "wandbb"], pytest.fail)


@pytest.mark.parametrize("target", ["no_such_library.loggers:Logger", "crucible_train.adapters.loggers.absent:Logger"])
def test_a_logger_whose_library_is_missing_says_so(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "LOGGERS", {**wiring.LOGGERS, "elsewhere": target})
    with pytest.raises(ConfigError, match=r"^report_to: elsewhere needs a library that is not installed: No module"):
        wiring.metrics_logger(["elsewhere"], pytest.fail)


def test_a_half_implemented_logger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "LOGGERS", {"half": "collections:OrderedDict"})
    with pytest.raises(ConfigError, match=r"^logger half: adapter OrderedDict lacks MetricsLogger\."):
        wiring.metrics_logger(["half"], pytest.fail)


@pytest.mark.parametrize("make", [lambda folder: wiring.blob_store(str(folder)), lambda _: wiring.dataset_store()])
def test_the_adapters_that_are_shipped_conform(make: Any, tmp_path: Path) -> None:
    assert make(tmp_path) is not None
