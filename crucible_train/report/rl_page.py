"""The report page of reinforcement learning: one HTML file, no script, no network."""

from typing import Any

from crucible_train.config.writing import as_text
from crucible_train.report.charts import reward_chart, small_chart, svg
from crucible_train.report.rl_facts import RLFacts
from crucible_train.report.template import render

_CHARTS = (
    ("sample/frac_mixed", "share of groups that teach something"),
    ("sample/answer_tokens", "tokens an answer"),
    ("train/entropy", "entropy, nats a token"),
    ("train/kl_v2", "divergence of sampler and trainer"),
    ("optim/grad_norm", "gradient norm before clipping"),
    ("optim/learning_rate", "learning rate"),
)
_SPEEDS = (
    ("perf/sampled_tokens_per_second", "tokens sampled a second"),
    ("time/step_s", "seconds a step"),
)


def page(facts: RLFacts, logtree: str) -> str:
    """The whole page as text; ``logtree`` is the address of the page of groups. Everything from data is escaped."""
    charts = [(facts.metrics, *chart) for chart in _CHARTS] + [(facts.timings, *chart) for chart in _SPEEDS]
    small = [
        svg(small_chart(records, name, label))
        for records, name, label in charts
        if any(name in record for record in records)
    ]
    return render(
        "rl_page.html.jinja",
        facts=facts,
        reward=svg(reward_chart(facts.metrics)),
        small=small,
        logtree=logtree,
        compared=facts.compared,
        written=lambda value: as_text(value, Any),
    )
