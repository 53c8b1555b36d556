"""How long a W&B service wishes to be left alone: its library waits that long by itself, but does not tell."""

import base64
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

_TIMEOUT_S = 5.0
_LATER = frozenset({429, 503})


def wish_s(address: str) -> float | None:
    """Seconds after which a service that did not answer in time wishes to be asked again; None where it says nothing.

    It is asked once more for that, in a request that changes nothing: an empty one, as a run says that it goes on.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        return None
    request = urllib.request.Request(address, b"{}", {"Content-Type": "application/json"})  # noqa: S310 - see above
    if key := os.environ.get("WANDB_API_KEY"):
        request.add_header("Authorization", f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        told = error.headers.get("Retry-After", "") if error.code in _LATER else ""
        return float(told) if told.isdigit() else None
    except OSError:  # nobody is there: that is told by the library
        return None
    return None
