"""Several runs side by side: the fields in which they differ, and which of them came out better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crucible_train import terminal
from crucible_train.config.writing import as_text
from crucible_train.errors import ConfigError
from crucible_train.loop.training import is_loss
from crucible_train.report.conversations import visible
from crucible_train.runs.reading import Run
from crucible_train.runs.table import Cell, figure, heading, show_table

# fields that say where a run lies or whom it tells, which nothing that is computed depends on
_PLACES = frozenset({"output_dir", "cache_dir", "run_name", "report_to", "tracking"})
_GAINS = ("reward", "accuracy", "margin")
_MEASURED = frozenset({"eval", "reward"})


@dataclass(frozen=True, slots=True)
class Row:
    """A named line with a text for every run. ``best`` holds the numbers of the runs that are better than another."""

    name: str
    texts: Sequence[str]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs with a short label each, the fields in which they differ, and their final metrics.

    ``shared`` is what all ids begin with and labels leave out; ``remarks`` are what a reader has to bear in mind.
    """

    runs: Sequence[Run]
    labels: Sequence[str]
    shared: str
    settings: Sequence[Row]
    metrics: Sequence[Row]
    remarks: Sequence[str]


def comparison(runs: Sequence[Run]) -> Comparison:
    """Compare runs.

    Raises:
        ConfigError: there are fewer than two, or one is named twice.
    """
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise ConfigError("compare: name two runs or more, each once")
    shared, labels = _labels([run.run_id for run in runs])
    settings = _settings(runs)
    names = dict.fromkeys(name for run in runs for name in sorted(run.final_metrics, key=_order))
    metrics = [_metric(runs, name) for name in sorted(names, key=_order)]
    return Comparison(runs, labels, shared, settings, metrics, _remarks(runs, settings))


def show_comparison(found: Comparison) -> None:
    """Print it as tables."""
    if found.shared:
        terminal.say(visible(f"runs of {found.shared}…: {', '.join(found.labels)}"))
    heading("Configuration")
    if found.settings:
        show_table(("field", *found.labels), [(row.name, *row.texts) for row in found.settings], "  ")
    else:
        terminal.say("  the runs do not differ")
    heading("Final metrics")
    rows: list[list[str | Cell]] = [
        [row.name, *(Cell(text, i in row.best) for i, text in enumerate(row.texts))] for row in found.metrics
    ]
    show_table(("metric", *found.labels), rows, "  ")
    if any(row.best for row in found.metrics):
        terminal.say("  * the best of these runs")
    for remark in found.remarks:
        terminal.say(visible(f"  {remark}"))


def _labels(ids: Sequence[str]) -> tuple[str, list[str]]:
    """What ids begin with, up to a hyphen, and what is left of each; nothing is cut where that would not tell them."""
    first, last = min(ids), max(ids)
    num_alike = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    shared = first[: first.rfind("-", 0, num_alike) + 1]
    labels = [one.removeprefix(shared) for one in ids]
    return (shared, labels) if all(labels) and len(set(labels)) == len(ids) else ("", _told_apart(ids))


def _told_apart(ids: Sequence[str]) -> list[str]:
    """Ids as they are; those of one name in several folders are numbered."""
    return [one if ids.count(one) == 1 else f"{one} ({number})" for number, one in enumerate(ids, 1)]


def _settings(runs: Sequence[Run]) -> list[Row]:
    names = dict.fromkeys(name for run in runs for name in run.settings if name.partition(".")[0] not in _PLACES)
    rows = [Row("method", [run.method for run in runs])]
    rows += [
        Row(name, [as_text(run.settings[name], Any) if name in run.settings else "-" for run in runs]) for name in names
    ]
    return [row for row in rows if len(set(row.texts)) > 1]


def _metric(runs: Sequence[Run], name: str) -> Row:
    values = [run.final_metrics.get(name) for run in runs]
    texts = [figure(value) for value in values]
    standing = [value for value in values if value is not None]
    lower = _lower_is_better(runs, name)
    if lower is None or len(set(standing)) < 2:
        return Row(name, texts)
    best = min(standing) if lower else max(standing)
    return Row(name, texts, frozenset(i for i, value in enumerate(values) if value == best))


def _lower_is_better(runs: Sequence[Run], name: str) -> bool | None:
    """Which way a metric is a gain; None where neither is, or where it depends on the method.

    What a run says of its held-out figures holds first. A loss of training is no measure where a method's loss is not
    one of how well it does, as with a policy's.
    """
    area, _, short = name.partition("/")
    if area == "eval":
        for run in runs:
            for change in run.changes:
                if change.name == short and change.lower_is_better is not None:
                    return change.lower_is_better
    is_supervised = all(run.method in ("sft", "dpo") for run in runs) and len({run.method for run in runs}) == 1
    if area not in _MEASURED and not (area == "train" and is_supervised):
        return None
    if is_loss(name):
        return True
    return False if short in _GAINS or name == "reward/mean" else None


def _remarks(runs: Sequence[Run], settings: Sequence[Row]) -> list[str]:
    remarks = []
    differing = [row.name for row in settings if _decides_what_is_held_out(row.name)]
    if differing:
        remarks.append(f"What is held out depends on {', '.join(differing)}: the figures are not of the same examples.")
    unfinished = [run.run_id for run in runs if not run.is_done]
    if unfinished:
        remarks.append(f"Not finished: {', '.join(unfinished)}; the figures are the last that were written.")
    return remarks


def _decides_what_is_held_out(field: str) -> bool:
    return field in ("seed", "dataset", "data.eval_split", "data.max_rows") or field.startswith("env.")


def _order(name: str) -> tuple[int, str]:
    """Held-out figures first, then rewards and training, then how it went."""
    areas = ("eval", "reward", "train", "sample")
    area = name.partition("/")[0]
    return (areas.index(area) if area in areas else len(areas), name)
