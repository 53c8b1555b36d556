"""What is wrong where the service or its SDK fails, in one line and without the key."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import tinker

from crucible_train.adapters.reasons import in_one_line
from crucible_train.config.redaction import REDACTED, hide_secrets
from crucible_train.config.tinker import KEY_VARIABLE
from crucible_train.errors import ConfigError, CrucibleError, ServerError

T = TypeVar("T")

_MAX_REASON = 400
_OF_THE_KEY = frozenset({401, 403})
_OF_THE_REQUEST = frozenset({400, 404, 422})


@dataclass(frozen=True, slots=True)
class Faults:
    """Turns the SDK's errors into ours.

    Attributes:
        place: what is asked, for messages: the service's address and its model.
        key: what no message may hold.
    """

    place: str
    key: str = field(repr=False)

    async def told(self, answer: Awaitable[T]) -> T:
        """What is awaited.

        Raises:
            ConfigError: the service takes another key, or refuses what it was asked.
            ServerError: it gives no answer.
        """
        try:
            return await answer
        except CrucibleError:
            raise
        except Exception as error:
            raise self.of(error) from error

    def of(self, error: BaseException) -> CrucibleError:
        """The error as one of ours."""
        status, reason = _status(error), self.without_key(_reason(error))
        if status in _OF_THE_KEY:
            return ConfigError(f"{KEY_VARIABLE}: {self.place} does not take this key: {reason}")
        if status in _OF_THE_REQUEST or _is_users(error):
            return ConfigError(f"{self.place} refuses: {reason}")
        return ServerError(f"{self.place}: {reason}")

    def without_key(self, text: str) -> str:
        """A text in which the key and what looks like one are hidden."""
        return " ".join(hide_secrets(text.replace(self.key, REDACTED)).split())[:_MAX_REASON]


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an error, or of the one that it stems from."""
    while error is not None:
        if isinstance(error, tinker.APIStatusError):
            return error.status_code
        error = error.__cause__
    return None


def _is_users(error: BaseException) -> bool:
    category = getattr(error, "category", None)
    return getattr(category, "name", "") == "User"


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, tinker.APIStatusError):
        return f"status {error.status_code}: {_said(error.body) or error.message}"
    if isinstance(error, tinker.APIConnectionError):
        return f"the connection failed: {in_one_line(error.__cause__ or error)}"
    return in_one_line(error)


def _said(body: Any) -> str:
    """What the service says in the body of a refusal."""
    if not isinstance(body, Mapping):
        return ""
    found = body.get("detail", body.get("error", body.get("message", "")))
    return str(found.get("message", found) if isinstance(found, Mapping) else found)
