"""Whether an adapter is what its port asks for: every member there, every method with every parameter."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from crucible_train.errors import ConfigError

T = TypeVar("T")


def conforming(adapter: Any, port: type[T], name: str) -> T:
    """The adapter, checked against its port.

    Raises:
        ConfigError: a member of the port is missing, or a method lacks one of its parameters.
    """
    made = type(adapter).__name__
    for member, declared in inspect.getmembers_static(port):
        if member.startswith("_"):
            continue
        found = inspect.getattr_static(adapter, member, None)
        if found is None:
            raise ConfigError(f"{name}: adapter {made} lacks {port.__name__}.{member}")
        if inspect.isfunction(declared):
            _check_method(getattr(adapter, member), declared, f"{name}: adapter {made}: {port.__name__}.{member}")
    return adapter  # type: ignore[no-any-return]


def _check_method(found: Any, declared: Callable[..., Any], name: str) -> None:
    if not callable(found):
        raise ConfigError(f"{name} is not a method")
    if inspect.iscoroutinefunction(declared) != inspect.iscoroutinefunction(found):
        raise ConfigError(f"{name} must {'be' if inspect.iscoroutinefunction(declared) else 'not be'} async")
    wanted = [p for p in inspect.signature(declared).parameters if p != "self"]
    missing = [p for p in wanted if p not in inspect.signature(found).parameters]
    if missing:
        raise ConfigError(f"{name} lacks the parameter {missing[0]!r}")
