"""HTML from the templates beside this module."""

from pathlib import Path
from typing import Any

import jinja2

from crucible_train.report.naming import shown_model

_FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """A page as text. Everything that comes from data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["figure"] = _figure
    environment.filters["model"] = shown_model
    environment.filters["thousands"] = lambda value: f"{value:,}"
    return environment.get_template(template).render(**values)


def _figure(value: float) -> str:
    """A number for people: four significant digits."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
