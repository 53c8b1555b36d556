"""The report page of learning from preferences: one HTML file, no script, no network."""

from typing import Any

from crucible_train.config.writing import as_text
from crucible_train.data.conversations import described
from crucible_train.report.charts import (
    accuracy_chart,
    machine_charts,
    margin_chart,
    preference_loss_chart,
    small_chart,
    svg,
)
from crucible_train.report.dpo_facts import DPOFacts
from crucible_train.report.template import render

_NUM_BAD_ROWS_SHOWN = 50
_CHARTS = (
    ("train/chosen_reward", "reward of the chosen"),
    ("train/rejected_reward", "reward of the rejected"),
    ("train/chosen_logprob", "log-probability of the chosen"),
    ("train/rejected_logprob", "log-probability of the rejected"),
    ("train/kl", "distance from the reference, nats a token"),
    ("optim/learning_rate", "learning rate"),
    ("optim/grad_norm", "gradient norm before clipping"),
)


def page(facts: DPOFacts) -> str:
    """The whole page as text. Everything that comes from data is escaped."""
    charts = [(facts.metrics, *chart) for chart in _CHARTS]
    charts.append((facts.timings, "perf/tokens_per_second", "tokens a second"))
    return render(
        "dpo_page.html.jinja",
        facts=facts,
        compared=facts.compared,
        format=described(facts.data["format"], facts.data["columns"]),
        curves=[svg(chart(facts.metrics)) for chart in (preference_loss_chart, accuracy_chart, margin_chart)],
        small=[
            svg(small_chart(records, name, label))
            for records, name, label in charts
            if any(name in record for record in records)
        ],
        machine=machine_charts(facts.timings),
        num_bad_rows_shown=_NUM_BAD_ROWS_SHOWN,
        written=lambda value: as_text(value, Any),
    )
