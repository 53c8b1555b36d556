"""Requests to one server: the key, time limits, and retries of what another try may mend."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from crucible_train.adapters.reasons import in_one_line
from crucible_train.config.redaction import REDACTED, hide_secrets
from crucible_train.config.server import ServerConfig
from crucible_train.errors import ServerError
from crucible_train.files import parse_json

_RETRIED = frozenset({408, 425, 429})  # and those of 500 and above, 501 excepted: it is never mended
_MAX_REASON = 400


class Refused(ServerError):
    """The server refuses the request, and would refuse it again. ``status`` is the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        """Keep the status."""
        self.status = status
        super().__init__(text)


class _Unlucky(Exception):
    """A try that failed in a way that the next one may not. ``wait_s`` is what the server asks for, if it does."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s
        super().__init__(reason)


class Transport:
    """Sends JSON and reads JSON, over a connection a request.

    None is kept open: what a connection costs is little beside a sample, and so nothing belongs to an event loop or is
    left to close. A caller that is cancelled closes its connection, which tells the server to stop. No redirect is
    followed and no proxy or ``.netrc`` of the environment is looked at: the key goes to ``base_url`` and nowhere else.
    """

    def __init__(
        self, config: ServerConfig, key: str | None, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    ) -> None:
        """Take the key as a value, which nothing shows."""
        self._config = config
        self._key = key
        self._sleep = sleep
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._timeout = httpx.Timeout(config.timeout_s, connect=config.connect_timeout_s)
        self._certificates = httpx.create_ssl_context()

    async def get(self, path: str) -> Any:
        """The JSON at a path."""
        return await self._patiently("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a JSON body.

        Raises:
            Refused: the server answers that the request is wrong.
            ServerError: no answer could be had in ``max_retries`` further tries.
        """
        return await self._patiently("POST", path, body)

    async def _patiently(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        tries = self._config.max_retries + 1
        for number in range(tries):
            try:
                return await self._once(method, path, body)
            except _Unlucky as unlucky:
                what = f"{self._config.base_url}{path}: {unlucky}"
                if number + 1 == tries:
                    times = f" ({tries} tries)" if tries > 1 else ""
                    raise ServerError(f"{what}{times}") from unlucky.__cause__
                if unlucky.wait_s > self._config.retry_max_s:
                    raise ServerError(
                        f"{what}: it asks to wait {unlucky.wait_s:g} s, longer than retry_max_s "
                        f"({self._config.retry_max_s:g} s)"
                    ) from unlucky.__cause__
                await self._sleep(max(unlucky.wait_s, self._drawn_wait(number)))
        raise AssertionError("there is at least one try")

    def _drawn_wait(self, number: int) -> float:
        """Between nothing and a bound that doubles, so that callers who failed together do not come back together."""
        bound = min(self._config.retry_max_s, self._config.retry_base_s * 2.0 ** min(number, 60))
        return secrets.SystemRandom().uniform(0.0, bound)

    async def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            async with httpx.AsyncClient(timeout=self._timeout, verify=self._certificates, trust_env=False) as http:
                url = f"{self._config.base_url}{path}"
                response = await http.request(method, url, json=body, headers=self._headers)
        except httpx.TimeoutException as error:
            raise _Unlucky(f"no answer in time ({type(error).__name__})") from error
        except httpx.TransportError as error:
            raise _Unlucky(f"the connection failed: {self._without_secrets(in_one_line(error))}") from error
        status = response.status_code
        if status in _RETRIED or (status >= 500 and status != 501):
            raise _Unlucky(self._told(response), _retry_after_s(response.headers.get("Retry-After")))
        if not response.is_success:
            raise Refused(status, f"{self._config.base_url}{path}: {self._told(response)}")
        try:
            return parse_json(response.content)
        except ValueError as error:
            raise _Unlucky("the answer is not JSON") from error

    def _told(self, response: httpx.Response) -> str:
        """The status and what the server says of it, in one line of bounded length."""
        text = " ".join(response.text.split())
        try:
            found = parse_json(response.content)
        except ValueError:
            found = None
        if isinstance(found, dict):
            error = found.get("error", found.get("detail", found.get("message", text)))
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        text = " ".join(self._without_secrets(text).split())[:_MAX_REASON]
        return f"status {response.status_code}" + (f": {text}" if text else "")

    def _without_secrets(self, text: str) -> str:
        return hide_secrets(text.replace(self._key, REDACTED) if self._key else text)


def _retry_after_s(header: str | None) -> float:
    """Seconds until the server wants to be asked again: a number, or a date; 0 where it does not say."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header)) if header.strip().isascii() and header.strip().isdigit() else _until(header)
    except ValueError:
        return 0.0


def _until(date: str) -> float:
    moment = parsedate_to_datetime(date)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
