"""The base of every configuration: frozen, unknown fields refused, every field described."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of fields.

    A validator's message starts with the name of the field it is about: the command line then names the file and line
    where that field was given.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=False
    )


def option(default: Any, description: str, *, advanced: bool = False, **constraints: Any) -> Any:
    """One field: its default, what it means with unit and range, and the range itself as pydantic constraints.

    Args:
        default: the value of a field that is not given.
        description: what it means, its unit and range.
        advanced: ``--help`` lists it by name and default only; ``--help-all`` describes it.
        constraints: what ``pydantic.Field`` takes, such as ``ge=1``.
    """
    if advanced:
        constraints["json_schema_extra"] = {"advanced": True}
    return Field(default=default, description=description, **constraints)
