"""A model that gives labels the log-probabilities a rule says."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from crucible_train.judges import ComparisonRenderer
from crucible_train.renderers import FastTokenizer, get_renderer
from crucible_train.types import Message, ModelInput
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def smollm2():
    return get_renderer("smollm2", FastTokenizer.from_folder(ROOT / "crucible_train" / "assets" / "smollm2"))


@pytest.fixture(scope="session")
def comparing(smollm2) -> ComparisonRenderer:
    return ComparisonRenderer(smollm2)


def said(text: str) -> Message:
    return Message("assistant", text)


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


class Labels:
    """Gives each label the log-probability that a rule says of the two answers it is shown."""

    def __init__(self, renderer: ComparisonRenderer, rule: Callable[[str, str], Sequence[float]]) -> None:
        self.texts: list[str] = []
        self._renderer, self._rule = renderer, rule

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        *before, label = model_input.to_ints()
        text = self._renderer.renderer.tokenizer.decode(before)
        self.texts.append(text)
        await asyncio.sleep(0)
        of_a, of_b = (answer_in(text, name) for name in ("A", "B"))
        place = list(self._renderer.label_ids.values()).index(label)
        return [None, *[-1.0] * (len(before) - 1), self._rule(of_a, of_b)[place]]


def answer_in(text: str, name: str) -> str:
    """What is shown as answer A or B."""
    lines = text.split("\n")
    start = lines.index(f"Answer {name}:") + 1
    shown = []
    for line in lines[start:]:
        if not line.startswith("> "):
            break
        shown.append(line[2:])
    return "\n".join(shown)
