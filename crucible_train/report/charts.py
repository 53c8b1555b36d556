"""Curves of a run, as SVG text and PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Record = Mapping[str, Any]

_INK, _FAINT, _TRAIN, _HELD_OUT = "#1f2430", "#d5d9e0", "#4063d8", "#d1495b"
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

    def draw(axes: Axes) -> None:
        _line(axes, metrics, "reward/mean", _TRAIN, "answers of the step")
        _line(axes, metrics, "eval/reward", _HELD_OUT, "held-out problems", marker="o")
        axes.set_ylabel("reward")
        axes.legend(loc="lower right")

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
        axes.set_title(label, loc="left", fontsize=10, color=_INK)

    return _figure(draw, (3.6, 2.1))


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
        axes.plot(steps, values, color=colour, label=label, linewidth=1.6, marker=marker, markersize=5)
