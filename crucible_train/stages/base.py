"""What a stage is, and how it is run only when it must be.

A stage's output is named by all that decides it: the stage and its version, the fields of the configuration that it
reads, the digests of its inputs, the code that makes the output and the libraries that compute it. A stage cannot read
a field that is not part of its name: it is given a configuration in which all others have their defaults.
"""

import asyncio
import shutil
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from filelock import FileLock, Timeout

import crucible_train
from crucible_train import files, terminal, wiring
from crucible_train.config.base import Section
from crucible_train.config.fields import tree_of
from crucible_train.errors import ArtifactError
from crucible_train.ports import BlobStore
from crucible_train.types import ArtifactRef

T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=Section)
EXTERNAL = "external"
"""The kind of an artifact that lies where the user keeps it, such as a model folder: it is never copied."""
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class StageDescription:
    """What a stage is, for people and for a pipeline's specification.

    ``schema`` holds, for every field the stage reads, its JSON schema.
    """

    name: str
    version: int
    summary: str
    schema: Mapping[str, Any]


class Stage(ABC, Generic[ConfigT]):
    """One step of a pipeline.

    A stage sets ``name``, ``version`` (to be raised when its output changes in a way its code's digest does not show),
    ``reads`` (fields or sections that decide the output), ``uses`` (fields that it needs but that do not change the
    output), ``code`` (packages whose source decides the output) and ``libraries`` (whose versions do).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    code: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ConfigT) -> None:
        """Take a configuration; all fields that the stage does not declare are reset to their defaults."""
        self.config: ConfigT = restricted(config, (*self.reads, *self.uses))

    @classmethod
    def describe(cls, config_type: type[Section]) -> StageDescription:
        """What the stage is and which fields it reads."""
        leaves = tree_of(config_type).leaves.values()
        schema = {
            leaf.path: {"description": leaf.description, "default": leaf.default}
            for leaf in leaves
            if _is_under(leaf.path, cls.reads)
        }
        return StageDescription(cls.name, cls.version, (cls.__doc__ or "").partition("\n")[0], schema)

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """All that decides the output, as JSON."""
        values = {path: value for path, value in _values(self.config).items() if _is_under(path, self.reads)}
        return {
            "stage": self.name,
            "version": self.version,
            "config": values,
            "inputs": {name: ref.sha256 for name, ref in inputs.items()},
            "code": source_digest((*self.code, type(self).__module__.removeprefix("crucible_train."))),
            "libraries": {library: version(library) for library in self.libraries},
        }

    def key(self, inputs: Mapping[str, ArtifactRef]) -> str:
        """The digest of the identity."""
        return files.sha256_json(self.identity(inputs))

    @abstractmethod
    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Make the output in an empty folder."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An artifact, and whether it was found rather than made."""

    ref: ArtifactRef
    is_cached: bool


async def resolve(stage: Stage[Any], inputs: Mapping[str, ArtifactRef], cache_dir: str) -> Outcome:
    """The stage's artifact: found in the store and checked there, or made.

    Two processes that need the same artifact on one machine wait for each other; on several machines the first to
    finish wins. An artifact that is missing or damaged is made again.
    """
    store = wiring.blob_store(cache_dir)
    manifest = f"{stage.name}/{stage.key(inputs)}"
    async with _alone(manifest):
        found = _lookup(store, manifest)
        if found is not None:
            return Outcome(found, is_cached=True)
        folder = _work_folder(manifest)
        started = time.monotonic()
        try:
            await stage.run({name: open_artifact(store, ref) for name, ref in inputs.items()}, folder)
            made = store.put(folder, stage.name)
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)
        record = {
            "artifact": made.model_dump(),
            "identity": stage.identity(inputs),
            "seconds": round(time.monotonic() - started, 3),
            "crucible_train": crucible_train.__version__,
        }
        if not store.create_manifest(manifest, record):
            winner = _lookup(store, manifest)
            return Outcome(winner or made, is_cached=winner is not None)
        return Outcome(made, is_cached=False)


def peek(stage: Stage[Any], inputs: Mapping[str, ArtifactRef], cache_dir: str) -> ArtifactRef | None:
    """The stage's artifact if it is in the store and sound; nothing is made."""
    return _lookup(wiring.blob_store(cache_dir), f"{stage.name}/{stage.key(inputs)}")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run work that blocks in a thread of its own: a request to stop need not wait for its end.

    Cancelled, the work is left behind. It ends with the process at the latest, and what it still writes lies in a
    folder that nobody reads and the stage's next run removes.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - whoever awaits it gets it
            future.set_exception(error)

    threading.Thread(target=work, name=f"crucible-{function.__name__}", daemon=True).start()
    return await asyncio.wrap_future(future)


def open_artifact(store: BlobStore, ref: ArtifactRef) -> Path:
    """The local path of an artifact, verified; one that lies where the user keeps it is taken as it is."""
    return Path(ref.uri) if ref.kind == EXTERNAL else store.fetch(ref)


def restricted(config: ConfigT, paths: tuple[str, ...]) -> ConfigT:
    """The configuration with every field that is not under ``paths`` reset to its default."""
    return cast("ConfigT", _restricted(config, "", paths))


@cache
def source_digest(packages: tuple[str, ...]) -> str:
    """The digest of the source of modules and packages of ``crucible_train``."""
    root = Path(crucible_train.__file__).parent
    found: set[Path] = set()
    for package in packages:
        path = root / package.replace(".", "/")
        inside = (file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        found.update(inside if path.is_dir() else [path.with_suffix(".py")])
    return files.sha256_json([[p.relative_to(root).as_posix(), files.sha256_file(p)] for p in sorted(found)])


def _lookup(store: BlobStore, manifest: str) -> ArtifactRef | None:
    try:
        record = store.read_manifest(manifest)
        if record is None:
            return None
        ref = ArtifactRef.model_validate(record["artifact"])
        store.fetch(ref)
    except (ArtifactError, KeyError, ValueError) as error:
        terminal.say(f"cached {manifest.partition('/')[0]} is made again: {str(error).splitlines()[0]}")
        store.delete_manifest(manifest)
        return None
    return ref


@asynccontextmanager
async def _alone(manifest: str) -> AsyncIterator[None]:
    """Hold the lock of a manifest on this machine. Waiting for it can be cancelled."""
    path = wiring.local_cache() / "locks" / f"{manifest.replace('/', '-')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    is_told = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            if not is_told:
                terminal.field("waits", f"another process is at the same work ({manifest.partition('/')[0]})")
                is_told = True
            await asyncio.sleep(_LOOK_EVERY_S)
    try:
        yield
    finally:
        lock.release()


def _work_folder(manifest: str) -> Path:
    """A new empty folder. What a killed process left of the same work goes; the lock says that it is nobody's."""
    place = wiring.local_cache() / "work" / manifest.replace("/", "-")
    shutil.rmtree(place, ignore_errors=True)
    folder = place / uuid.uuid4().hex
    folder.mkdir(parents=True)
    return folder


def _restricted(config: Any, prefix: str, paths: tuple[str, ...]) -> Any:
    default, update = type(config)(), {}
    for name in type(config).model_fields:
        path = f"{prefix}.{name}" if prefix else name
        value = getattr(config, name)
        if isinstance(value, Section):
            update[name] = _restricted(value, path, paths)
        elif not _is_under(path, paths):
            update[name] = getattr(default, name)
    return config.model_copy(update=update)


def _values(config: Section, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in type(config).model_fields:
        path = f"{prefix}.{name}" if prefix else name
        value = getattr(config, name)
        values |= _values(value, path) if isinstance(value, Section) else {path: value}
    return values


def _is_under(path: str, paths: tuple[str, ...]) -> bool:
    return any(path == start or path.startswith(f"{start}.") for start in paths)
