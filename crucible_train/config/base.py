"""The base of every configuration: frozen, unknown fields refused, every field described."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=False)


def option(default: Any, description: str, **constraints: Any) -> Any:
    """One field: its default, what it means with unit and range, and the range itself as pydantic constraints."""
    return Field(default=default, description=description, **constraints)
