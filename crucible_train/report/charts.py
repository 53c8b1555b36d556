"""Curves of a run, as SVG text and PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Record = Mapping[str, Any]

_INK, _FAINT, _TRAIN, _HELD_OUT = "#1f2430", "#d5d9e0", "#4063d8", "#d1495b"
_COLOURS = (_TRAIN, _HELD_OUT, "#2a9d6f", "#c98a1b", "#7b4fc9", "#2b9ab8", "#8a5a44", "#5b6475")
_DASHES, _FEW = ("-", "--", ":", "-."), 12
_LOADS = (
    ("system/cpu_percent", "processor, % of all cores"),
    ("system/memory_gib", "memory of the run, GiB"),
    ("system/gpu_percent", "GPU, % of the time"),
    ("system/gpu_memory_gib", "memory of the GPU, GiB"),
)
_PREFERENCES = ("preferences of the step", "held-out preferences")
_STYLE = {
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "crucible",
}


def loss_chart(metrics: Sequence[Record]) -> Figure:
    """Loss of every step, and the held-out negative log-likelihood where it was measured."""

    def draw(axes: Axes) -> None:
        _line(axes, metrics, "train/loss", _TRAIN, "training loss")
        _line(axes, metrics, "eval/nll", _HELD_OUT, "held-out NLL", marker="o")
        axes.set_ylabel("nats a token")
        axes.legend(loc="upper right")

    return _figure(draw, (7.4, 3.4))


def reward_chart(metrics: Sequence[Record]) -> Figure:
    """Mean reward of every step's answers, and of the held-out problems where they were played."""
    return _two_lines(metrics, "reward/mean", "eval/reward", ("answers of the step", "held-out problems"), "reward")


def preference_loss_chart(metrics: Sequence[Record]) -> Figure:
    """Loss of every step's preferences, and of the held-out ones where they were measured."""
    return _two_lines(metrics, "train/loss", "eval/loss", _PREFERENCES, "loss", "upper right")


def accuracy_chart(metrics: Sequence[Record]) -> Figure:
    """Share of every step's preferences that the model has the same, and of the held-out ones."""
    return _two_lines(metrics, "train/accuracy", "eval/accuracy", _PREFERENCES, "accuracy")


def margin_chart(metrics: Sequence[Record]) -> Figure:
    """Mean margin of rewards of every step's preferences, and of the held-out ones."""
    return _two_lines(metrics, "train/margin", "eval/margin", _PREFERENCES, "margin of rewards")


def _two_lines(
    metrics: Sequence[Record],
    trained: str,
    held_out: str,
    labels: tuple[str, str],
    what: str,
    legend: Literal["upper right", "lower right"] = "lower right",
) -> Figure:
    """A metric of every step, and one of what is held out."""

    def draw(axes: Axes) -> None:
        _line(axes, metrics, trained, _TRAIN, labels[0])
        _line(axes, metrics, held_out, _HELD_OUT, labels[1], marker="o")
        axes.set_ylabel(what)
        axes.legend(loc=legend)

    return _figure(draw, (7.4, 3.4))


def divergence_chart(metrics: Sequence[Record]) -> Figure:
    """The divergence of student and teacher over the answers of every step."""

    def draw(axes: Axes) -> None:
        _line(axes, metrics, "train/teacher_kl", _TRAIN, "answers of the step")
        axes.set_ylabel("divergence from the teacher, nats a token")
        axes.legend(loc="upper right")

    return _figure(draw, (7.4, 3.4))


def small_chart(records: Sequence[Record], name: str, label: str) -> Figure:
    """One metric over the steps."""

    def draw(axes: Axes) -> None:
        _line(axes, records, name, _TRAIN, label)
        axes.set_title(label, loc="left", fontsize=10, color=_INK, parse_math=False)

    return _figure(draw, (3.6, 2.1))


def machine_charts(timings: Sequence[Record]) -> list[str]:
    """How busy the machine was at every step, as ``<svg>`` elements, as far as it was measured."""
    return [
        svg(small_chart(timings, name, label)) for name, label in _LOADS if any(name in record for record in timings)
    ]


def line_colour(number: int) -> str:
    """The colour of the curves of the run of this number."""
    return _COLOURS[number % len(_COLOURS)]


def overlaid_chart(curves: Sequence[tuple[int, Sequence[tuple[int, float]]]], label: str, *, is_large: bool) -> Figure:
    """One metric of several runs.

    Args:
        curves: the number of each run, which decides its colour, with the steps and values of its curve.
        label: the name of the metric.
        is_large: as wide as the page.
    """

    def draw(axes: Axes) -> None:
        for number, points in curves:
            dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
            steps, values = zip(*points, strict=True)
            few = "o" if len(points) < _FEW else ""
            axes.plot(
                steps, values, color=line_colour(number), linestyle=dash, linewidth=1.6, marker=few, markersize=3.5
            )
        axes.set_title(label, loc="left", fontsize=10, color=_INK, parse_math=False)

    return _figure(draw, (7.4, 3.0) if is_large else (3.6, 2.1))


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element; the same figure gives the same text."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a PNG picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _figure(draw: Any, size: tuple[float, float]) -> Figure:
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    return figure


def _line(axes: Axes, records: Sequence[Record], name: str, colour: str, label: str, marker: str = "") -> None:
    points = [(record["step"], record[name]) for record in records if name in record]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, label=label, linewidth=1.6, marker=marker or _dot(steps), markersize=5)


def _dot(steps: Sequence[int]) -> str:
    """A single value is a point: a line through it would not be seen."""
    return "o" if len(steps) == 1 else ""
