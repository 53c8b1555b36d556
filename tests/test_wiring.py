"""The composition root: what is missing or half implemented is told by name, at once."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from crucible_train import wiring
from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.errors import ConfigError
from crucible_train.ports import MetricsLogger, SamplingClient
from crucible_train.ports.conforming import conforming


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
    assert conforming(adapter, SamplingClient, "sampling client") is adapter


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
        conforming(adapter, SamplingClient, "sampling client")
    assert str(caught.value) == told


def test_an_async_method_where_the_port_has_a_plain_one_is_named() -> None:
    class Late(QuietLogger):
        async def log_metrics(self, metrics: Any, step: int) -> None: ...  # type: ignore[override]

    with pytest.raises(ConfigError, match=r"adapter Late: MetricsLogger.log_metrics must not be async"):
        conforming(Late(), MetricsLogger, "logger late")


def test_an_unknown_logger_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(
        ConfigError, match=r"^report_to: 'wandbb' is unknown; known are auto, console, csv, .*module:Class"
    ):
        wiring.metrics_logger(["console", "wandbb"], pytest.fail)


@pytest.mark.parametrize("target", ["no_such_library.loggers:Logger", "crucible_train.adapters.loggers.absent:Logger"])
def test_a_logger_whose_library_is_missing_says_so(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "LOGGERS", {**wiring.LOGGERS, "elsewhere": target})
    with pytest.raises(ConfigError, match=r"^report_to: elsewhere needs a library that is not installed: No module"):
        wiring.metrics_logger(["elsewhere"], pytest.fail)


def test_a_tracker_whose_extra_is_missing_names_it_without_importing_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = wiring.Tracker("no_such_library.loggers:Logger", "no_such_library", "absent")
    monkeypatch.setattr(wiring, "TRACKERS", {**wiring.TRACKERS, "absent": absent})
    told = 'report_to: absent needs the library no_such_library: pip install "crucible-train[absent]"'
    assert wiring.check_names(["console", "absent", "csv", "auto"]) == [told]
    with pytest.raises(ConfigError) as caught:
        wiring.metrics_logger(["absent"], pytest.fail)
    assert str(caught.value) == told


def test_what_is_heard_of_trackers_goes_where_other_lines_go(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    class Replicated(QuietLogger):
        def __init__(self, trackers: list[str], *, report: Any) -> None:
            found.extend((trackers, report))

    monkeypatch.setattr("crucible_train.adapters.loggers.replicated.ReplicatedLogger", Replicated)
    wiring.metrics_logger(["console", "csv"], pytest.fail)
    assert found == [["csv"], pytest.fail]


def test_auto_is_the_console_and_mlflow_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_there, names in ((True, ["console", "mlflow"]), (False, ["console"])):
        monkeypatch.setattr(wiring, "_is_installed", lambda _, is_there=is_there: is_there)
        assert wiring.resolved(["auto"]) == names
    assert wiring.resolved(["csv", "auto", "console"]) == ["csv", "console"]
    assert wiring.tracker_names(["console", "csv"]) == ["csv"]


@pytest.mark.parametrize("name", sorted(wiring.TRACKERS))
def test_every_tracker_that_is_installed_conforms(name: str) -> None:
    if wiring.check_names([name]):
        pytest.skip("its extra is not installed")
    if importlib.util.find_spec(wiring.TRACKERS[name].target.partition(":")[0]) is None:
        pytest.skip("its adapter is not there yet")
    assert isinstance(wiring.tracker(name), MetricsLogger)


def test_a_logger_of_ones_own_is_named_by_module_and_class() -> None:
    assert wiring.check_names(["tests.tracking.http_tracker:HttpTracker"]) == []
    assert isinstance(wiring.tracker("tests.tracking.http_tracker:HttpTracker"), MetricsLogger)
    assert wiring.check_names(["no.such:Logger"]) == [
        "report_to: no.such:Logger: there is no module no.such that Python can import"
    ]


def test_a_half_implemented_logger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "LOGGERS", {"half": "collections:OrderedDict"})
    with pytest.raises(ConfigError, match=r"^logger half: adapter OrderedDict lacks MetricsLogger\."):
        wiring.metrics_logger(["half"], pytest.fail)


@pytest.mark.parametrize("make", [lambda folder: wiring.blob_store(str(folder)), lambda _: wiring.dataset_store()])
def test_the_adapters_that_are_shipped_conform(make: Any, tmp_path: Path) -> None:
    assert make(tmp_path) is not None
