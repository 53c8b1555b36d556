"""What can be found wrong with any configuration before anything is run: names, places, model files.

Nothing is fetched from a hub here, and torch is imported only where a GPU is asked for. What a flow looks at besides
stands with its stages.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from safetensors import SafetensorError, safe_open

from crucible_train import terminal, wiring
from crucible_train.checkpoints import MANIFEST
from crucible_train.config.redaction import hide_in_remark, hide_secrets
from crucible_train.config.run_config import RunConfig
from crucible_train.data.conversations import FormatTable
from crucible_train.errors import ConfigError, CrucibleError, DataError
from crucible_train.renderers import find_renderer, list_renderers
from crucible_train.stages.chat_format import renderer_spec
from crucible_train.stages.prepare_model import BUILT_IN, at_hand

_CONNECT_S = 2.0


class Note(str):
    """What a check found that stops nothing, but that the user should know."""


Problems = Iterator[str]
Examine = Callable[[Any], Problems]


def tell(note: str) -> None:
    """Print a note."""
    terminal.field("note", note)


def check_all(config: RunConfig, checks: Sequence[Examine], tell: Callable[[str], None]) -> None:
    """Look at everything, and ``tell`` each note.

    Raises:
        ConfigError: something is wrong; all that is wrong is reported together.
    """
    found = [one for examine in checks for one in _found(examine, config)]
    for one in found:
        if isinstance(one, Note):
            tell(one)
    if problems := [one for one in found if not isinstance(one, Note)]:
        raise ConfigError(problems)


def _found(examine: Examine, config: RunConfig) -> Problems:
    try:
        yield from examine(config)
    except CrucibleError as error:
        yield from str(error).splitlines()


def names(config: RunConfig) -> Problems:
    """Loggers, the renderer, and what the run is called."""
    yield from _remarks(config)
    yield from wiring.check_names(config.report_to)
    if not is_renderer(config.data.renderer):
        known = ", ".join(["auto", *list_renderers()])
        yield f"data.renderer: {config.data.renderer!r} is unknown; known are {known}"


def secrets(values: dict[str, object]) -> Problems:
    """Prefect keeps a run's parameters, so none may hold a secret; by the names of their fields."""
    for field, value in values.items():
        if holds_secret(value):
            yield (
                f"{field}: {hide_secrets(value)}: it holds a secret, which would be kept with the run; give "
                "credentials through the environment or the library's own settings file"
            )


def _remarks(config: RunConfig) -> Problems:
    """What a person wrote of the run: its folder, its page and its trackers keep that as it is."""
    told = {"run_name": config.run_name, "tracking": config.tracking.model_dump()}
    for name, value in told.items():
        for field, text in texts(name, value):
            shown = hide_in_remark(text)
            if shown != text:
                yield f"{field}: {shown}: it holds a secret, which would be kept with the run; leave it out"


def texts(field: str, value: object) -> Iterator[tuple[str, str]]:
    """Every text in a value, however deep in mappings and lists, with the dotted path to it."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from texts(f"{field}.{name}", item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from texts(f"{field}[{number}]", item)


def holds_secret(value: object) -> TypeGuard[str]:
    """Whether an address is refused for its secret, and so not tried."""
    return isinstance(value, str) and hide_secrets(value) != value


def places(config: RunConfig) -> Problems:
    """Folders that are written to, and the store."""
    yield from _unwritable("the folder for this machine's own notes", str(wiring.local_cache()))
    yield from _unwritable("output_dir", config.output_dir)
    if "://" not in config.cache_dir:
        yield from _unwritable("cache_dir", config.cache_dir)
        return
    if not holds_secret(config.cache_dir):
        wiring.blob_store(config.cache_dir).read_manifest("preflight")  # whether it answers


def checkpoint(config: RunConfig) -> Problems:
    """The checkpoint to go on from."""
    wanted = config.checkpoint.resume_from_checkpoint
    if wanted not in ("auto", "never") and not (Path(wanted).expanduser() / MANIFEST).is_file():
        yield f"checkpoint.resume_from_checkpoint: {wanted}: there is no such checkpoint"


def model(config: RunConfig) -> Problems:
    """The model's files, where it is here, and its chat format."""
    source = at_hand(config.model) if config.model != BUILT_IN and not holds_secret(config.model) else None
    if source is not None:
        for weights in sorted(source.glob("*.safetensors")):
            yield from _unreadable(weights)
        if source.is_dir() and is_renderer(config.data.renderer):
            renderer_spec(config, source)


def device(config: RunConfig) -> Problems:
    """The GPU, where one is asked for."""
    if config.engine.device == "cuda":
        wiring.hardware(config.engine)
    yield from ()


def silence(field: str, server_url: str, needed: str) -> Problems:
    """A note where nothing takes connections at a server's address; what it is ``needed`` for comes later.

    No error: a run whose stages are all in the cache needs no server.
    """
    address = urlsplit(server_url)
    place = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    answers: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection(place, timeout=_CONNECT_S).close()
            answers.append("")
        except (OSError, UnicodeError) as error:  # UnicodeError: no name that can be looked up
            answers.append(getattr(error, "strerror", None) or str(error))

    connecting = threading.Thread(target=connect, daemon=True)  # looking up a name has no limit of its own
    connecting.start()
    connecting.join(_CONNECT_S)
    why = answers[0] if answers else f"not within {_CONNECT_S:g} s"
    if why:
        yield Note(f"{field}: nothing answers at {hide_secrets(server_url)} ({why}); it must when {needed}")


def is_renderer(name: str) -> bool:
    """Whether there is a renderer of this name."""
    return name == "auto" or find_renderer(name) is not None


def first_row(field: str, source: str, columns: Sequence[str], table: FormatTable[Any] | None) -> Problems:
    """Whether there is a row, and columns that one of a table's formats reads; None leaves the columns unseen."""
    if _is_hub_id(source) or holds_secret(source):
        return
    try:
        row = next(iter(wiring.dataset_store().rows(source)), None)
    except DataError as error:
        yield f"{field}: {str(error).removeprefix('dataset: ')}"
        return
    if row is None:
        yield f"{field}: {hide_secrets(source)}: it holds no rows"
    elif row.values is not None and table is not None:
        try:
            table.detect([*columns, *row.values])
        except DataError as error:
            yield f"{field}: {hide_secrets(source)}: {error}"


def _is_hub_id(text: str) -> bool:
    """Whether a text can only be the name of something on a hub: ``name`` or ``owner/name``, and no such file."""
    if "://" in text or text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(text).exists():
        return False
    return not PurePosixPath(text).suffix.removeprefix(".").isalpha()


def _unreadable(weights: Path) -> Problems:
    """Whether a file's header is sound and the file as long as the header says."""
    try:
        safe_open(weights, framework="numpy")
    except (SafetensorError, OSError) as error:
        text = str(error)
        yield f"model: {weights}: {text[:1].lower()}{text[1:]}"


def _unwritable(field: str, folder: str) -> Problems:
    """Whether a folder can be made there, or written to, as far as can be seen without doing it."""
    path = Path(folder).expanduser().absolute()
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not there.is_dir():
        yield f"{field}: {folder}: {there} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"{field}: {folder}: {there} is not to be written to"
