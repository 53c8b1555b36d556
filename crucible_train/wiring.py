"""The composition root: the one module that names adapters.

Everything else works with ports. Each builder returns the port's type, and what it builds is checked against the port
at once: an adapter that is missing or half implemented is reported by name, not when a run first needs what it lacks.
"""

import importlib.util
import os
import pkgutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crucible_train.config.sections import EngineConfig, PeftConfig
from crucible_train.config.server import ServerConfig
from crucible_train.config.tinker import TinkerConfig, key_of_environment
from crucible_train.errors import ConfigError
from crucible_train.judges import RewardModel
from crucible_train.ports import (
    BlobStore,
    DatasetStore,
    MetricsLogger,
    RecordedRun,
    SamplingClient,
    Tokenizer,
    TrainingClient,
)
from crucible_train.ports.conforming import conforming
from crucible_train.types import AnyPreferenceLoss, Datum, Estimate, Hardware

if TYPE_CHECKING:
    from crucible_train.adapters.torch_local.backend import EngineSettings
    from crucible_train.adapters.torch_local.loading import Lora
    from crucible_train.adapters.torch_local.reward_backend import RewardBackend


@dataclass(frozen=True, slots=True)
class Tracker:
    """A tracker that runs can be sent to.

    Attributes:
        target: its logger, as module:name; made without arguments.
        library: what it needs to import.
        extra: what of ``crucible-train`` to install for that; empty where nothing is needed.
        switched_off_by: what in the environment, as ``NAME=value``, says that nothing is to be sent.
    """

    target: str
    library: str = ""
    extra: str = ""
    switched_off_by: str = ""


# metrics.jsonl is written by every run; these are what can be had besides: in the process that trains ...
LOGGERS: Mapping[str, str] = {
    "console": "crucible_train.adapters.loggers.console:ConsoleLogger",
}
_ADAPTERS = "crucible_train.adapters.loggers"
# ... and in processes of their own
TRACKERS: Mapping[str, Tracker] = {
    "csv": Tracker(f"{_ADAPTERS}.csv_file:CSVLogger"),
    "tensorboard": Tracker(f"{_ADAPTERS}.tensorboard_events:TensorBoardLogger", "tensorboard", "tensorboard"),
    "wandb": Tracker(f"{_ADAPTERS}.wandb_runs:WandbLogger", "wandb", "wandb", "WANDB_MODE=disabled"),
    "mlflow": Tracker(f"{_ADAPTERS}.mlflow_runs:MlflowLogger", "mlflow", "mlflow"),
    "trackio": Tracker(f"{_ADAPTERS}.trackio_runs:TrackioLogger", "trackio", "trackio"),
    "neptune": Tracker(f"{_ADAPTERS}.neptune_file:NeptuneLogger", "neptune_scale", "neptune"),
}
AUTO = "auto"
"""In ``report_to``: the console, and MLflow where it is installed."""


def blob_store(cache_dir: str) -> BlobStore:
    """The store of cached artifacts at a folder or URL."""
    from crucible_train.adapters.blob_store import FsspecBlobStore

    return conforming(FsspecBlobStore(cache_dir, local_cache()), BlobStore, "blob store")


def dataset_store() -> DatasetStore:
    """The reader of data sets."""
    from crucible_train.adapters.row_store.store import RowStore

    return conforming(RowStore(), DatasetStore, "dataset store")


def metrics_logger(names: Sequence[str], report: Callable[[str], None]) -> MetricsLogger:
    """The loggers of a run, joined; one that fails is dropped with a line to ``report``.

    Raises:
        ConfigError: a name is unknown or its library is missing.
    """
    from crucible_train.adapters.loggers.multiplex import MultiplexLogger
    from crucible_train.adapters.loggers.replicated import ReplicatedLogger

    if problems := check_names(names):
        raise ConfigError(problems)
    for line in switched_off(names):
        report(line)
    made = {name: _logger(name) for name in resolved(names) if name in LOGGERS}
    if trackers := tracker_names(names):
        made["tracking"] = conforming(ReplicatedLogger(trackers, report=report), MetricsLogger, "tracking")
    return conforming(MultiplexLogger(made, report), MetricsLogger, "metrics logger")


def tracker(name: str) -> MetricsLogger:
    """The logger of a tracker, which sends what it is told.

    Raises:
        ConfigError: the name is unknown, its library is missing, or what it names is no logger.
    """
    if problems := [*check_names([name]), *([f"{name}: it is no tracker"] if name in (AUTO, *LOGGERS) else ())]:
        raise ConfigError(problems)
    target = TRACKERS[name].target if name in TRACKERS else name
    try:
        factory = pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"report_to: {name} cannot be loaded: {error}") from error
    return conforming(factory(), MetricsLogger, f"tracker {name}")


def recorded_run(place: Path) -> RecordedRun:
    """The run in a file of Neptune's client, or in a folder of such files.

    Raises:
        ConfigError: there is none, it cannot be read, or the library is missing.
    """
    if not _is_installed("neptune_api"):
        raise ConfigError(f'{place}: reading it needs the library neptune_api: pip install "crucible-train[neptune]"')
    from crucible_train.adapters.loggers.neptune_reading import read_neptune_run

    try:
        return read_neptune_run(place)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def tracker_names(report_to: Sequence[str]) -> list[str]:
    """Those of ``report_to`` that are sent to from a process of their own, and are not switched off."""
    return [name for name in resolved(report_to) if name not in LOGGERS and not _is_switched_off(name)]


def switched_off(report_to: Sequence[str]) -> list[str]:
    """A line for each of ``report_to`` to which, by the environment, nothing is sent."""
    off = [name for name in resolved(report_to) if _is_switched_off(name)]
    return [f"{name}: {TRACKERS[name].switched_off_by}, so nothing is sent there" for name in off]


def resolved(report_to: Sequence[str]) -> list[str]:
    """``report_to`` with ``auto`` replaced by what it stands for, each name once."""
    auto = ["console", *(["mlflow"] if _is_installed("mlflow") else [])]
    return list(dict.fromkeys(name for given in report_to for name in (auto if given == AUTO else [given])))


def start_follower(run_dir: Path, replica: str, *words: str) -> "subprocess.Popen[bytes]":
    """Start the process that sends a run to a tracker.

    Raises:
        OSError: no process started.
    """
    from crucible_train.adapters.loggers.replicated import start_follower as start

    return start(run_dir, replica, *words)


def hardware(config: EngineConfig) -> Hardware:
    """Resolve ``auto`` on this machine."""
    from crucible_train.adapters.torch_local.hardware import choose_hardware

    return choose_hardware(config.device, config.precision, config.num_threads, local_cache())


def machine_load(report: Callable[[str], None]) -> Callable[[], Mapping[str, float]]:
    """What tells, without waiting, how busy the machine is; ``report`` gets a line where the GPU cannot be asked."""
    from crucible_train.adapters.machine_load import MachineLoad
    from crucible_train.adapters.torch_local.gpu_load import gpu_load

    return MachineLoad(gpu_load, report).newest


def training_client(
    model_dir: Path,
    peft: PeftConfig,
    engine: EngineConfig,
    hardware: Hardware,
    state_dir: Path,
    *,
    name: str,
    seed: int,
    adapter: Path | None = None,
) -> TrainingClient:
    """The local engine on a model folder; ``adapter`` begins from trained adapter weights."""
    from crucible_train.adapters.torch_local.backend import LocalBackend

    settings = _engine_settings(engine, hardware, state_dir, seed)
    client = LocalBackend(model_dir, tokenizer(model_dir), settings, _lora(peft), adapter=adapter, name=name)
    return conforming(client, TrainingClient, "training client")


def reward_model(
    model_dir: Path,
    peft: PeftConfig,
    engine: EngineConfig,
    hardware: Hardware,
    state_dir: Path,
    *,
    name: str,
    seed: int,
    adapter: Path | None = None,
) -> "RewardBackend":
    """The local engine with a scalar head, the one beside ``adapter`` or the model where there is one."""
    from crucible_train.adapters.torch_local.reward_backend import RewardBackend

    settings = _engine_settings(engine, hardware, state_dir, seed)
    made = RewardBackend(model_dir, tokenizer(model_dir), settings, _lora(peft), adapter, name)
    conforming(made, TrainingClient, "reward model")
    conforming(made, RewardModel, "reward model")
    return made


def sampling_client(server: ServerConfig, tokenizer: Tokenizer, report: Callable[[str], None]) -> SamplingClient:
    """A model server; ``tokenizer`` is that of its model, and ``report`` gets a line on what the server can do."""
    from crucible_train.adapters.openai_compatible.sampler import OpenAICompatibleSampler

    return conforming(OpenAICompatibleSampler(server, tokenizer, report), SamplingClient, "sampling client")


@asynccontextmanager
async def tinker_client(
    config: TinkerConfig, tokenizer: Tokenizer, report: Callable[[str], None]
) -> AsyncIterator[SamplingClient]:
    """A model of the Tinker service, until the block ends; ``tokenizer`` and ``report`` as in ``sampling_client``.

    Raises:
        ConfigError: the SDK is missing, there is no key, or the service does not take it or has no such model.
        ServerError: the service does not answer.
    """
    check_tinker()
    from crucible_train.adapters.tinker_service.session import session

    async with session(config, tokenizer, report) as client:
        yield conforming(client, SamplingClient, "sampling client")


def check_tinker() -> None:
    """See that the Tinker service can be asked: its SDK is installed, and the environment holds a key.

    Raises:
        ConfigError: it cannot.
    """
    if not _is_installed("tinker"):
        raise ConfigError('the Tinker service needs the library tinker: pip install "crucible-train[tinker]"')
    key_of_environment()


def estimate(
    model_dir: Path, peft: PeftConfig, engine: EngineConfig, hardware: Hardware, mean_length: int, num_written: int
) -> Estimate:
    """What the local engine will need for the model of a folder; only its config.json is read.

    ``mean_length`` is the length of an ordinary sequence in tokens, ``num_written`` the answers written at once.
    """
    from crucible_train.adapters.torch_local.estimate import estimate as found

    return found(model_dir, _engine_settings(engine, hardware, Path(), 0), _lora(peft), mean_length, num_written)


def losses_by_preference(
    loss: AnyPreferenceLoss, datums: Sequence[Datum], logprobs: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float64]:
    """The loss of each preference, from log-probabilities or rewards that are known."""
    from crucible_train.losses.by_preference import losses_by_preference as found

    return found(loss, datums, logprobs)


def tokenizer(model_dir: Path) -> Tokenizer:
    """The tokenizer of a model folder."""
    from crucible_train.renderers import FastTokenizer

    return conforming(FastTokenizer.from_folder(model_dir), Tokenizer, "tokenizer")


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model of a GGUF file into a folder that transformers reads."""
    from crucible_train.adapters.torch_local.conversion import convert_gguf as convert

    convert(source, folder)


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """Write the model of a folder with a trained adapter's update added to its weights."""
    from crucible_train.adapters.torch_local.merging import merge_adapter as merge

    merge(base, adapter, folder)


def download_model(model: str, patterns: Sequence[str]) -> Path:
    """The local folder of a hub model, fetched where it is not there yet."""
    from crucible_train.adapters.hub import download_model as download

    return download(model, patterns)


def downloaded_model(model: str) -> Path | None:
    """The local folder of a hub model, if it was fetched before."""
    from crucible_train.adapters.hub import downloaded_model as find

    return find(model)


def check_names(report_to: Sequence[str]) -> list[str]:
    """What is wrong with the names of adapters in a configuration, a line each."""
    return [problem for name in report_to if (problem := _problem_of(name))]


def _problem_of(name: str) -> str:
    if name == AUTO or name in LOGGERS:
        return ""
    if ":" in name:
        module = name.partition(":")[0]
        return "" if _is_installed(module) else f"report_to: {name}: there is no module {module} that Python can import"
    if name not in TRACKERS:
        known = ", ".join(sorted({AUTO, *LOGGERS, *TRACKERS}))
        return f"report_to: {name!r} is unknown; known are {known}, and module:Class for a logger of your own"
    wanted = TRACKERS[name]
    if wanted.library and not _is_installed(wanted.library):
        return f'report_to: {name} needs the library {wanted.library}: pip install "crucible-train[{wanted.extra}]"'
    return ""


def _is_switched_off(name: str) -> bool:
    variable, _, value = TRACKERS[name].switched_off_by.partition("=") if name in TRACKERS else ("", "", "")
    return bool(variable) and os.environ.get(variable, "").strip().lower() == value


def _is_installed(module: str) -> bool:
    """Whether Python can find a module; it is not imported, but for the packages it lies in."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def local_cache() -> Path:
    """Where this machine keeps what it found out, and copies of remote files."""
    return Path("~/.cache/crucible_train/machine").expanduser()


def _lora(peft: PeftConfig) -> "Lora | None":
    from crucible_train.adapters.torch_local.loading import Lora

    if not peft.use_peft:
        return None
    targets = peft.lora_target_modules
    return Lora(
        peft.lora_r, peft.lora_alpha, peft.lora_dropout, targets if isinstance(targets, str) else tuple(targets)
    )


def _engine_settings(engine: EngineConfig, hardware: Hardware, state_dir: Path, seed: int) -> "EngineSettings":
    from crucible_train.adapters.torch_local.backend import EngineSettings

    return EngineSettings(hardware, state_dir, engine.micro_batch_tokens, engine.activation_checkpointing, seed)


def _logger(name: str) -> MetricsLogger:
    try:
        factory = pkgutil.resolve_name(LOGGERS[name])
    except ImportError as error:
        raise ConfigError(f"report_to: {name} needs a library that is not installed: {error}") from error
    return conforming(factory(), MetricsLogger, f"logger {name}")
