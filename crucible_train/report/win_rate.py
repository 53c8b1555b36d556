"""What a report says of the trained model's answers beside those of the model before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.config.redaction import hide_secrets

_NUM_SHOWN = 6
_MANY_FLIPS = 0.5
_WORDS = {"x": "after is better", "y": "before is better", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class ShownMatch:
    """A prompt, both answers to it and what the judge says of them."""

    prompt: str
    before: str
    after: str
    verdict: str


@dataclass(frozen=True, slots=True)
class WinRateFacts:
    """A win rate as its stage left it, and its first matches."""

    summary: Mapping[str, Any]
    shown: Sequence[ShownMatch]

    @property
    def num(self) -> int:
        """How many prompts both models answered."""
        return int(self.summary["num"])

    @property
    def judge(self) -> str:
        """Who judged."""
        return hide_secrets(str(self.summary["judge"]))

    @property
    def counts(self) -> Mapping[str, int]:
        """How many prompts were won, tied and lost."""
        return _counts(self.summary)

    @property
    def caveat(self) -> str | None:
        """Why little can be read from it; None where nothing speaks against it."""
        flips = self.summary["position"]["flip_share"]
        if flips <= _MANY_FLIPS:
            return None
        return (
            f"The judge's verdict turned round with the order of the answers on {flips:.0%} of the prompts: it judges "
            "the place more than the answer, and little can be read from these figures."
        )


def gather_win_rate(folder: Path | None) -> WinRateFacts | None:
    """Read what the stage left; None where nothing was compared."""
    if folder is None:
        return None
    rows = files.read_json_lines(folder / "results.jsonl")
    return WinRateFacts(files.read_json(folder / "summary.json"), [_shown(row) for row in rows[:_NUM_SHOWN]])


def win_rate_lines(facts: WinRateFacts | None) -> list[str]:
    """A paragraph in Markdown, with an empty line before it; nothing where nothing was compared."""
    if facts is None:
        return []
    if not facts.num:
        return ["", "Win rate: no held-out prompt was there to be answered."]
    return [
        "",
        f"Win rate over the model before training: {in_a_line(facts.summary)}. Judged in both orders by "
        f"{of_the_judge(facts.summary)}.",
        *(["", facts.caveat] if facts.caveat is not None else []),
    ]


def in_a_line(summary: Mapping[str, Any]) -> str:
    """The win rate with its interval, and what it is made of."""
    rate, counts = summary["win_rate"], _counts(summary)
    return (
        f"{rate['value']:.4g}, 95 % interval [{rate['low']:.4g}, {rate['high']:.4g}] over {summary['num']}: "
        f"{summary['verdict']}; {counts['won']} won, {counts['tied']} tied, {counts['lost']} lost"
    )


def of_the_judge(summary: Mapping[str, Any]) -> str:
    """Who judged, and how far the order of the answers decided."""
    judge, position = hide_secrets(str(summary["judge"])), summary["position"]
    return (
        f"{judge}: position bias {position['bias']:.3f}, the verdict flips with the order in "
        f"{position['flip_share']:.0%}"
    )


def _counts(summary: Mapping[str, Any]) -> dict[str, int]:
    names = (("won", "wins"), ("tied", "ties"), ("lost", "losses"))
    return {word: round(summary[name]["value"] * summary["num"]) for word, name in names}


def _shown(row: Mapping[str, Any]) -> ShownMatch:
    prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in row["messages"])
    if len(row["messages"]) == 1:
        prompt = str(row["messages"][0]["content"])
    return ShownMatch(prompt, row["answers"]["y"], row["answers"]["x"], _WORDS[row["verdict"]])
