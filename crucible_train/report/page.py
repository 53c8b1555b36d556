"""The report page: one HTML file, no script, no network."""

from pathlib import Path

import jinja2

from crucible_train.report.charts import loss_chart, small_chart, svg
from crucible_train.report.facts import RunFacts

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_NUM_BAD_ROWS_SHOWN = 50


def page(facts: RunFacts) -> str:
    """The whole page as text. Everything that comes from data is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["figure"] = _figure
    environment.filters["thousands"] = lambda value: f"{value:,}"
    charts = {
        "loss": svg(loss_chart(facts.metrics)),
        "rate": svg(small_chart(facts.metrics, "optim/learning_rate", "learning rate")),
        "norm": svg(small_chart(facts.metrics, "optim/grad_norm", "gradient norm before clipping")),
        "speed": svg(small_chart(facts.timings, "perf/tokens_per_second", "tokens a second")),
    }
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(facts=facts, charts=charts, num_bad_rows_shown=_NUM_BAD_ROWS_SHOWN)


def _figure(value: float) -> str:
    """A number for people: four significant digits."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
