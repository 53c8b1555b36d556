"""What the stubs of model servers read of a request."""

from typing import Any


async def body_of(receive: Any) -> bytes:
    """All that a request holds."""
    raw = b""
    while True:
        message = await receive()
        raw += message.get("body", b"")
        if not message.get("more_body"):
            return raw


def headers_of(scope: Any) -> dict[str, str]:
    """The headers of a request, their names in small letters."""
    return {name.decode().lower(): value.decode() for name, value in scope["headers"]}
