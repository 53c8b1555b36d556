"""Telling an MLflow server that cannot take what it is sent now from a request that is wrong."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit, urlunsplit

import requests
from mlflow.exceptions import MlflowException
from urllib3.response import BaseHTTPResponse

from crucible_train.adapters.reasons import in_one_line
from crucible_train.ports import LoggerUnavailable

_LATER = (requests.exceptions.ConnectionError, requests.exceptions.Timeout, requests.exceptions.RetryError)
_LATER_CODES = frozenset({"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"})


@contextmanager
def reached() -> Iterator[None]:
    """Raise LoggerUnavailable for an unreachable, busy or failing server, and for a busy database."""
    try:
        yield
    except (MlflowException, requests.exceptions.RequestException) as error:
        causes = list(_causes(error))
        is_later = any(
            isinstance(cause, _LATER) or getattr(cause, "error_code", "") in _LATER_CODES for cause in causes
        )
        if not is_later and not any(_status(cause) in (408, 429) or _status(cause) >= 500 for cause in causes):
            raise
        raise LoggerUnavailable(f"MLflow: {in_one_line(error)}", _retry_after_s(causes)) from error


def without_user(uri: str) -> str:
    """An address that may be shown: no user, no password, and no query, where a database takes both as well."""
    parts = urlsplit(uri)
    if not parts.netloc:  # a file: its slashes would not survive
        return uri
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
    return urlunsplit(shown).rstrip("/")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        cause = waiting.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [other for other in (cause.__cause__, cause.__context__) if other is not None]


def _status(error: BaseException) -> int:
    """The HTTP status of a failed transfer of a file; 0 for anything else."""
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)


def _retry_after_s(causes: list[BaseException]) -> float | None:
    """The wish of the server in seconds.

    The client drops the response of a request it gives up, so it is looked for in the frames that held it.
    """
    for cause in causes:
        trace = cause.__traceback__
        while trace is not None:
            response = trace.tb_frame.f_locals.get("response")
            headers = response.headers if isinstance(response, BaseHTTPResponse | requests.Response) else {}
            seconds = _seconds_of(headers.get("Retry-After", ""))
            if seconds is not None:
                return seconds
            trace = trace.tb_next
    return None


def _seconds_of(wish: str) -> float | None:
    """Seconds from now, of a number of them or of a date as HTTP writes it; None for anything else."""
    if wish.isdigit():
        return float(wish)
    try:
        moment = parsedate_to_datetime(wish)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())
