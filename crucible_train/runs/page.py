"""The page that compares runs: one HTML file, no script, no network."""

from collections.abc import Sequence

from crucible_train.report.charts import line_colour, overlaid_chart, svg
from crucible_train.report.template import render
from crucible_train.runs.comparing import Comparison
from crucible_train.runs.reading import Run, curve

_FIRST = ("eval/reward", "eval/nll", "eval/loss", "reward/mean", "train/loss")
_NUM_LARGE = 2
_LEFT_OUT = frozenset({"progress", "system"})


def page(found: Comparison) -> str:
    """The whole page as text. Everything from data is escaped."""
    names = _metrics(found.runs)
    large = [name for name in _FIRST if name in names][:_NUM_LARGE]
    return render(
        "runs_compared.html.jinja",
        found=found,
        has_tags=any(run.tags for run in found.runs),
        colours=[line_colour(number) for number in range(len(found.runs))],
        large=[_chart(found.runs, name, is_large=True) for name in large],
        small=[_chart(found.runs, name, is_large=False) for name in names if name not in large],
    )


def _metrics(runs: Sequence[Run]) -> list[str]:
    """The metrics that change over the steps of a run, by name."""
    names = {name for run in runs for record in (*run.metrics, *run.timings) for name in record if name != "step"}
    return sorted(
        name
        for name in names
        if name.partition("/")[0] not in _LEFT_OUT and any(len(curve(run, name)) > 1 for run in runs)
    )


def _chart(runs: Sequence[Run], name: str, *, is_large: bool) -> str:
    curves = [(number, curve(run, name)) for number, run in enumerate(runs)]
    return svg(overlaid_chart([(number, points) for number, points in curves if points], name, is_large=is_large))
