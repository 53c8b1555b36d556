"""The report page: one HTML file, no script, no network."""

from typing import Any

from crucible_train.config.writing import as_text
from crucible_train.data.conversations import described
from crucible_train.report.charts import loss_chart, machine_charts, small_chart, svg
from crucible_train.report.facts import RunFacts
from crucible_train.report.template import render

_NUM_BAD_ROWS_SHOWN = 50


def page(facts: RunFacts) -> str:
    """The whole page as text. Everything that comes from data is escaped."""
    charts = {
        "loss": svg(loss_chart(facts.metrics)),
        "rate": svg(small_chart(facts.metrics, "optim/learning_rate", "learning rate")),
        "norm": svg(small_chart(facts.metrics, "optim/grad_norm", "gradient norm before clipping")),
        "speed": svg(small_chart(facts.timings, "perf/tokens_per_second", "tokens a second")),
    }
    return render(
        "page.html.jinja",
        facts=facts,
        compared=[*facts.compared, *facts.ended],
        format=described(facts.data["format"], facts.data["columns"]),
        charts=charts,
        machine=machine_charts(facts.timings),
        num_bad_rows_shown=_NUM_BAD_ROWS_SHOWN,
        written=lambda value: as_text(value, Any),
    )
