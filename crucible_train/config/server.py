"""Where a model server is and how it is asked."""

import re
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, ConfigDict

from crucible_train.config.base import Section, option

ServerKind = Literal["auto", "vllm", "sglang", "llama.cpp", "transformers"]


def checked_url(url: str) -> str:
    """The URL without a slash at its end.

    Raises:
        ValueError: it is no address of a server, or holds credentials; the text does not repeat it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not _has_sound_port(parts):
        raise ValueError("base_url must be the http or https address of a server, such as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url must not hold credentials: put the key in an environment variable")
    if parts.query or parts.fragment:
        raise ValueError("base_url must not hold a query or a fragment")
    return url.rstrip("/")


def _has_sound_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:  # no number, or none below 65536
        return False


def _without_version(url: str) -> str:
    return checked_url(url).removesuffix("/v1")


def _variable(name: str) -> str:
    """The name of an environment variable, in capitals, as no key is.

    Raises:
        ValueError: it is something else, perhaps the key; the text does not repeat it.
    """
    if name and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError("api_key_env must be the name of an environment variable in capitals, not the key itself")
    return name


class ServerConfig(Section):
    """An OpenAI-compatible server of one model, asked over ``/v1/completions``."""

    # a refused URL may hold a password: no error repeats what was given
    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: Annotated[str, AfterValidator(_without_version)] = option(
        "http://127.0.0.1:8000", "http or https address of the server, with or without /v1, without credentials"
    )
    model: str = option("", "the model's name there; empty takes the only one it serves")
    server: ServerKind = option("auto", "what the server is; auto finds out and says so")
    api_key_env: Annotated[str, AfterValidator(_variable)] = option(
        "", "name in capitals of the environment variable that holds the key; empty sends none"
    )
    max_concurrency: int = option(64, "requests under way at once, 1 or more", ge=1)
    timeout_s: float = option(600.0, "seconds without a byte before a request is given up, above 0", gt=0)
    connect_timeout_s: float = option(10.0, "seconds until a connection must stand, above 0", gt=0, advanced=True)
    max_retries: int = option(5, "tries after the first, 0 or more", ge=0)
    retry_base_s: float = option(
        0.5,
        "the first wait before a retry lasts at most this many seconds, later ones twice the last, above 0",
        gt=0,
        advanced=True,
    )
    retry_max_s: float = option(60.0, "longest wait before a retry in seconds, above 0", gt=0, advanced=True)
    text_answers: Literal["refuse", "counted", "any"] = option(
        "refuse",
        "a server that returns text and no token ids is refused; or its text is encoded again, and taken where the "
        "server counted as many tokens, or in any case",
        advanced=True,
    )
