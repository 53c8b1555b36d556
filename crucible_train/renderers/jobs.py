"""Work on one of many conversations whose texts are encoded together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from crucible_train.errors import RenderError
from crucible_train.renderers.pieces import Asks
from crucible_train.renderers.tokenizer import refuse_lone_surrogate
from crucible_train.types import Message

T = TypeVar("T")
Encode = Callable[[Sequence[str], Sequence[Message]], Sequence[npt.NDArray[np.int32]]]


class Job(Generic[T]):
    """One of many conversations that are rendered together: what it asks for next, or what came of it."""

    def __init__(self, messages: Sequence[Message], work: Asks[T] | RenderError) -> None:
        """Begin."""
        self.asked: Sequence[str] = ()
        self.result: T | RenderError | None = work if isinstance(work, RenderError) else None
        self._messages = messages
        self._work = work
        self.go_on(None)

    def go_on(self, ids: Sequence[npt.NDArray[np.int32]] | None) -> None:
        """Give what was asked for; None at the beginning."""
        if isinstance(self._work, RenderError):
            return
        try:
            self.asked = self._work.send(ids)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as done:
            self.result = done.value
        except RenderError as error:
            self.result = error

    def finish_alone(self, encode: Encode) -> None:
        """Do the rest by itself."""
        while self.result is None:
            try:
                ids = encode(self.asked, self._messages)
            except RenderError as error:
                self.result = error
                return
            self.go_on(ids)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def refuse_lone_surrogates(messages: Sequence[Message]) -> None:
    """Refuse half of a surrogate pair in any text of these messages.

    Raises:
        RenderError: there is one; the text names the message's index and field.
    """
    for index, message in enumerate(messages):
        for field, value in message.to_dict().items():
            for text in _texts(value):
                refuse_lone_surrogate(text, f"message {index}: {field}")
