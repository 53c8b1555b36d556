"""The report page of reinforcement learning: one HTML file, no script, no network."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from crucible_train.config.writing import as_text
from crucible_train.report.charts import machine_charts, reward_chart, small_chart, svg
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
    return problem_page(facts, "rl_page.html.jinja", _CHARTS, reward_chart(facts.metrics), logtree=logtree)


def problem_page(
    facts: RLFacts, template: str, of_metrics: Sequence[tuple[str, str]], first: Figure, **more: object
) -> str:
    """The page of a run on problems: a large curve, small ones of these metrics and of speed, answers."""
    charts = [(facts.metrics, *chart) for chart in of_metrics] + [(facts.timings, *chart) for chart in _SPEEDS]
    small = [
        svg(small_chart(records, name, label))
        for records, name, label in charts
        if any(name in record for record in records)
    ]
    return render(
        template,
        facts=facts,
        first=svg(first),
        small=small,
        machine=machine_charts(facts.timings),
        **more,
        compared=facts.compared,
        written=lambda value: as_text(value, Any),
    )
