"""A session of the service: opened in a thread, since the SDK waits for its own; closed when it is no longer needed."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import tinker

from crucible_train.adapters.hub import downloaded_model
from crucible_train.adapters.tinker_service.faults import Faults
from crucible_train.adapters.tinker_service.sampler import NAME, TinkerSampler
from crucible_train.config.tinker import TinkerConfig, key_of_environment
from crucible_train.errors import ConfigError
from crucible_train.ports import Tokenizer
from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.tokenizer import DEFINITION_FILE

T = TypeVar("T")
Report = Callable[[str], None]

_SAVED = "tinker://"
_CLOSE_WITHIN_S = 10.0


@asynccontextmanager
async def session(config: TinkerConfig, tokenizer: Tokenizer, report: Report) -> AsyncIterator[TinkerSampler]:
    """A client of a model of the service, until the block ends.

    Args:
        config: which model, and where.
        tokenizer: that of the model.
        report: takes a line on what was found, and what the SDK warns of.

    Raises:
        ConfigError: there is no key, the service does not take it or has no such model, or its tokenizer is another.
        ServerError: no session could be had.
    """
    key = key_of_environment()
    service = tinker.ServiceClient(api_key=key, base_url=config.base_url)
    place = config.base_url or NAME
    with _warnings_told(lambda text: report(Faults(place, key).without_key(text))):
        try:
            client, base_model = await Faults(place, key).told(_opened(service, config))
            report(f"{config.model} of {place}, {_checked_tokenizer(base_model, tokenizer)}")
            yield TinkerSampler(client, tokenizer, Faults(f"{place}, {config.model}", key), config.timeout_s)
        finally:
            await _closed(service)


async def _opened(service: tinker.ServiceClient, config: TinkerConfig) -> tuple[tinker.SamplingClient, str]:
    """A client, and the name of the base model behind it."""
    which = "model_path" if config.model.startswith(_SAVED) else "base_model"

    def open_it() -> tuple[tinker.SamplingClient, str]:
        client = service.create_sampling_client(**{which: config.model}).result()
        return client, client.get_base_model()

    async with asyncio.timeout(config.connect_timeout_s):
        return await asyncio.wrap_future(_in_thread(open_it))


async def _closed(service: tinker.ServiceClient) -> None:
    """Tell the service that the session is over; one that is not there ends it by itself, for want of a heartbeat."""
    with contextlib.suppress(TimeoutError, tinker.TinkerError):
        async with asyncio.timeout(_CLOSE_WITHIN_S):
            await asyncio.wrap_future(_in_thread(lambda: service.close("success").result()))


def _in_thread(function: Callable[[], T]) -> "Future[T]":
    """Run in a thread that no end of the program waits for: the SDK tries for minutes."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # whoever leaves does not stop it

    def run() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - it is handed to whoever waits
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="crucible-tinker", daemon=True).start()
    return future


def _checked_tokenizer(base_model: str, tokenizer: Tokenizer) -> str:
    """See that the tokenizer is the model's, where the hub's is on this machine; in words whether that was seen.

    Raises:
        ConfigError: it is another.
    """
    folder = downloaded_model(base_model)
    if folder is None or not (folder / DEFINITION_FILE).is_file():
        return f"whose tokenizer is taken to be {tokenizer.name}"
    if FastTokenizer.from_folder(folder).sha256 != tokenizer.sha256:
        raise ConfigError(f"tokenizer: that of {base_model} is another than {tokenizer.name}; give {folder}")
    return "whose tokenizer is at hand"


class _Telling(logging.Handler):
    """Passes on what the SDK warns of, such as that it waits for capacity; its errors are raised besides."""

    def __init__(self, tell: Report) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            self._tell(record.getMessage())


@contextmanager
def _warnings_told(tell: Report) -> Iterator[None]:
    logger, handler = logging.getLogger("tinker"), _Telling(tell)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
