"""Two models on the same held-out examples: the difference of every figure, with its interval, pair by pair."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_train.evaluation.statistics import (
    Interval,
    paired_rate_interval,
    paired_ratio_interval,
    rate_interval,
    ratio_interval,
)

# Five differences of one sign happen by chance in more than one of twenty cases (2 / 2^5): that is never clear.
MIN_CLEAR = 6
ALONE = "one example, no interval"


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure before and after, each with its interval, and their difference with its paired interval.

    ``num`` is how many examples it is over; ``lower_is_better`` says which way is a gain.
    """

    name: str
    num: int
    before: Interval
    after: Interval
    difference: Interval
    lower_is_better: bool

    @property
    def has_interval(self) -> bool:
        """Whether there is more than one example: one says nothing of how much others would differ from it."""
        return self.num > 1

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference excludes no change, over enough examples for it to mean something."""
        return self.num >= MIN_CLEAR and self.difference.excludes(0.0)

    @property
    def is_gain(self) -> bool:
        """Whether the difference is for the better."""
        return (self.difference.value < 0) is self.lower_is_better and self.difference.value != 0

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.has_interval:
            return ALONE
        if not self.is_clear:
            return "no clear change"
        return "better" if self.is_gain else "worse"

    def to_json(self) -> dict[str, Any]:
        """As ``eval/summary.json`` holds it, with its verdict."""
        return asdict(self) | {"verdict": self.verdict}


def compare(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], seed: int) -> list[Compared]:
    """Compare the records of two evaluations, as ``eval/results.jsonl`` holds them.

    Raises:
        ValueError: the two are not over the same examples.
    """
    found = []
    pairs = _pairs(before, after, "nll")
    if pairs:
        # what one conversation gives belongs together: a draw takes all of it or nothing
        _, place = np.unique([before["row"] for before, _ in pairs], return_inverse=True)
        counts = _summed(place, [before["num_tokens"] for before, _ in pairs])
        totals = [_summed(place, [record["nll"] for record in side]) for side in zip(*pairs, strict=True)]
        found.append(
            Compared(
                "nll",
                len(counts),
                ratio_interval(totals[0], counts, seed),
                ratio_interval(totals[1], counts, seed),
                paired_ratio_interval(totals[0], totals[1], counts, seed),
                lower_is_better=True,
            )
        )
    answers = _pairs(before, after, "answer")
    for name in answers[0][0]["scores"] if answers else ():
        hits = [[record["scores"][name] >= 1.0 for record in side] for side in zip(*answers, strict=True)]
        found.append(_rates(name, *hits))
    return found


def compare_rewards(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], seed: int
) -> list[Compared]:
    """Compare how two models played the same held-out problems: the reward, and each of its parts.

    A problem that failed on either side is left out of both.

    Raises:
        ValueError: the two are not over the same problems.
    """
    pairs = [pair for pair in _pairs(before, after, "problem") if all(row["reward"] is not None for row in pair)]
    if not pairs:
        return []
    figures = {"reward": [[row["reward"] for row in side] for side in zip(*pairs, strict=True)]}
    for name in sorted({name for pair in pairs for row in pair for name in row["parts"]}):
        figures[name] = [[row["parts"].get(name, 0.0) for row in side] for side in zip(*pairs, strict=True)]
    return [_means(name, np.asarray(left), np.asarray(right), seed) for name, (left, right) in figures.items()]


def compare_figure(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], name: str, seed: int
) -> list[Compared]:
    """Compare the mean of a figure that is to fall, over the held-out problems that have it on both sides.

    Raises:
        ValueError: the two are not over the same problems.
    """
    pairs = [pair for pair in _pairs(before, after, "problem") if all(row.get(name) is not None for row in pair)]
    if not pairs:
        return []
    left, right = (np.asarray([row[name] for row in side], np.float64) for side in zip(*pairs, strict=True))
    return [_means(name, left, right, seed, lower_is_better=True)]


def compare_preferences(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], seed: int
) -> list[Compared]:
    """Compare two models on the same held-out preferences: accuracy, margin and loss.

    Raises:
        ValueError: the two are not over the same preferences.
    """
    pairs = _pairs(before, after, "preference")
    if not pairs:
        return []
    figures = {
        name: [np.array([row[name] for row in side], np.float64) for side in zip(*pairs, strict=True)]
        for name in ("accuracy", "margin", "loss")
    }
    return [_means(name, left, right, seed, lower_is_better=name == "loss") for name, (left, right) in figures.items()]


def _means(
    name: str,
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    seed: int,
    *,
    lower_is_better: bool = False,
) -> Compared:
    """Two means over the same examples; shares where every value is 0 or 1."""
    if np.isin([before, after], (0.0, 1.0)).all():
        return _rates(name, (before == 1.0).tolist(), (after == 1.0).tolist())
    ones = np.ones(before.size)
    return Compared(
        name,
        before.size,
        ratio_interval(before, ones, seed),
        ratio_interval(after, ones, seed),
        paired_ratio_interval(before, after, ones, seed),
        lower_is_better=lower_is_better,
    )


def compare_ended(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """How many answers the two models ended themselves; nothing where none were written.

    Raises:
        ValueError: the two are not over the same prompts.
    """
    answers = _pairs(before, after, "answer")
    ended = [[bool(record["ended"]) for record in side] for side in zip(*answers, strict=True)]
    return [_rates("ended", *ended)] if answers else []


def _rates(name: str, before: Sequence[bool], after: Sequence[bool]) -> Compared:
    """Two shares of successes over the same examples."""
    num = len(before)
    return Compared(
        name,
        num,
        rate_interval(sum(before), num),
        rate_interval(sum(after), num),
        paired_rate_interval(before, after),
        lower_is_better=False,
    )


def _summed(place: npt.NDArray[np.intp], values: Sequence[float]) -> npt.NDArray[np.float64]:
    """The sum of the values at each place."""
    return np.asarray(np.bincount(place, values), np.float64)


def _pairs(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], kind: str
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    left, right = ([record for record in side if record["kind"] == kind] for side in (before, after))
    if [record["row"] for record in left] != [record["row"] for record in right]:
        raise ValueError(f"the two evaluations are not over the same examples ({kind})")
    return list(zip(left, right, strict=True))
