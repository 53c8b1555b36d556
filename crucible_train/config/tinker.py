"""Which model of the Tinker service is asked, and how long it is waited for."""

import os
from typing import Annotated

from pydantic import AfterValidator, ConfigDict

from crucible_train.config.base import Section, option
from crucible_train.config.server import checked_url
from crucible_train.errors import ConfigError

KEY_VARIABLE = "TINKER_API_KEY"
"""The environment variable that holds the key of the service: there is no other place for it."""
_STARTS = ("tml-", "eyJ")
"""How keys of the service begin."""


class TinkerConfig(Section):
    """A model of the Tinker service. Its key is in the environment variable TINKER_API_KEY."""

    # a refused URL may hold a password: no error repeats what was given
    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = option("", "a base model by its name there, or saved weights by their tinker:// path")
    base_url: Annotated[str, AfterValidator(checked_url)] | None = option(
        None, "http or https address of the service, without credentials; null: as its SDK has it", advanced=True
    )
    timeout_s: float = option(
        1800.0, "seconds until a request, with the SDK's own tries of it, is given up, above 0", gt=0, advanced=True
    )
    connect_timeout_s: float = option(
        60.0, "seconds until a session of the service must stand, above 0", gt=0, advanced=True
    )


def key_of_environment() -> str:
    """The key of the service.

    Raises:
        ConfigError: the environment holds none.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {KEY_VARIABLE} is not set: it holds the key of the Tinker service")
    if not key.startswith(_STARTS) or not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the environment variable {KEY_VARIABLE} holds no key of the service: they begin with tml-")
    return key
