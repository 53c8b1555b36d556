"""Labelled comparisons as supervised data: both orders of each, ties among them, and only the label trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_train.adapters.row_store.store import RowStore
from crucible_train.config.sections import DataConfig
from crucible_train.data.preparation import prepare
from crucible_train.data.render_rows import RendererSpec
from crucible_train.data.rendering import TRAIN, VALIDATION, render
from crucible_train.data.tables import Examples
from crucible_train.errors import DataError
from crucible_train.judges import ComparisonRenderer
from crucible_train.types import Message
from tests.conftest import ROOT

SPEC = RendererSpec("smollm2", {}, ROOT / "crucible_train" / "assets" / "smollm2")
GOOD = {"prompt": "2 + 2?", "completion_A": "4", "completion_B": "5", "label": "A"}
SWAPPED = {"A": "B", "B": "A", "Tie": "Tie"}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def asked(a: str, b: str, prompt: str = "2 + 2?") -> list[Message]:
    comparing = ComparisonRenderer(SPEC.make())
    return [*comparing.messages([Message("user", prompt)], Message("assistant", a), Message("assistant", b))]


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        GOOD | {"label": " a "},
        GOOD
        | {"prompt": [{"role": "user", "content": "2 + 2?"}], "completion_B": [{"role": "assistant", "content": "5"}]},
        {"messages": [{"role": "user", "content": "2 + 2?"}], "answer_a": "4", "answer_b": "5", "label": "A"},
        {"question": "2 + 2?", "response_a": "4", "response_b": "5", "label": "a"},
        {"prompt": "2 + 2?", "a": "4", "b": "5", "label": "A"},
    ],
)
@pytest.mark.parametrize("label", ["A", "B", "Tie"])
def test_a_comparison_is_read_in_both_orders(row: dict[str, Any], label: str, prepared: Callable[..., Any]) -> None:
    found = prepared(lines(row if label == "A" else row | {"label": label}))
    assert found.summary["format"] == "comparison"
    dialogue = found.dialogues[0]
    assert list(dialogue.messages) == [*asked("4", "5"), Message("assistant", label)]
    assert list(dialogue.swapped) == [*asked("5", "4"), Message("assistant", SWAPPED[label])]
    assert dialogue.orders == (dialogue.messages, dialogue.swapped)


def test_columns_may_have_other_names(prepared: Callable[..., Any]) -> None:
    row = {"q": "2 + 2?", "left": "4", "right": "5", "better": "B"}
    columns = {"prompt": "q", "completion_A": "left", "completion_B": "right", "label": "better"}
    assert prepared(lines(row), columns=columns).conversations[0][-1]["content"] == "B"


@pytest.mark.parametrize(
    ("row", "reason", "text"),
    [
        (GOOD | {"label": "C"}, "not_a_conversation", "label must be A, B or Tie, not 'C'"),
        (GOOD | {"label": None}, "not_a_conversation", "label must be A, B or Tie, not None"),
        (GOOD | {"completion_B": "4"}, "equal_sides", "label is A, and both answers are the same"),
        (GOOD | {"completion_A": None}, "not_a_conversation", "completion_A is null"),
        (
            GOOD | {"completion_A": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]},
            "not_a_conversation",
            "answer A: a judge is shown one answer",
        ),
        (
            GOOD | {"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "not_a_conversation",
            "two assistant messages in a row",
        ),
        (GOOD | {"prompt": []}, "not_a_conversation", "the conversation has no messages"),
    ],
)
def test_what_is_no_comparison_is_set_aside(
    row: dict[str, Any], reason: str, text: str, prepared: Callable[..., Any]
) -> None:
    found = prepared(lines(GOOD, row), on_bad_row="quarantine")
    assert [(one["reason"], text in one["problem"]) for one in found.quarantined] == [(reason, True)]
    assert found.summary["num_rows"] == 1


def test_equal_answers_may_tie(prepared: Callable[..., Any]) -> None:
    found = prepared(lines(GOOD | {"completion_B": "4", "label": "Tie"}))
    assert found.conversations[0][-1]["content"] == "Tie"


def test_a_conversation_is_one_as_before(prepared: Callable[..., Any]) -> None:
    dialogue = prepared(lines({"prompt": "q", "completion": "a", "label": "A"})).dialogues[0]
    assert (dialogue.swapped, len(dialogue.orders)) == ((), 1)


@pytest.fixture
def rendered(tmp_path: Path) -> Callable[..., dict[str, list[Any]]]:
    """The examples of some rows, by the part they are in."""

    def run(rows: list[dict[str, Any]], **options: Any) -> dict[str, list[Any]]:
        (tmp_path / "rows.jsonl").write_bytes(lines(*rows))
        config = DataConfig(**options)
        prepare(RowStore(), str(tmp_path / "rows.jsonl"), config, tmp_path)
        render(tmp_path, SPEC, config, 3, tmp_path / "rendered")
        return {part: list(Examples(tmp_path / "rendered" / part)) for part in (TRAIN, VALIDATION)}

    return run


def test_both_orders_are_trained_or_both_held_out(rendered: Callable[..., dict[str, list[Any]]]) -> None:
    """The ids are those after which a judge is asked, then the label's; nothing before it is trained."""
    labels = ["A", "B", "Tie"]
    rows = [
        {"prompt": f"{i}?", "completion_A": f"it is {i}", "completion_B": f"no {i}", "label": labels[i % 3]}
        for i in range(12)
    ]
    comparing = ComparisonRenderer(SPEC.make())
    found = rendered(rows, eval_split=0.25)
    assert {len(some) for some in found.values()} == {18, 6}
    for some in found.values():
        numbers = [example.row for example in some]
        assert numbers == [number for number in dict.fromkeys(numbers) for _ in range(2)]
        for place, example in enumerate(some):
            row = rows[example.row]
            a, b, label = row["completion_A"], row["completion_B"], row["label"]
            if place % 2:
                a, b, label = b, a, SWAPPED[label]
            prompt = comparing.judging_prompt(
                [Message("user", row["prompt"])], Message("assistant", a), Message("assistant", b)
            ).to_ints()
            assert example.tokens_T[: len(prompt)].tolist() == prompt
            assert example.tokens_T[len(prompt)] == comparing.label_ids[label]
            assert int(np.flatnonzero(example.weights_T)[0]) == len(prompt)


def test_a_comparison_too_long_in_either_order_is_one_bad_row(rendered: Callable[..., Any]) -> None:
    rows = [GOOD, GOOD | {"completion_B": "5 " * 200}]
    with pytest.raises(DataError, match="1 of 2 rows is bad"):
        rendered(rows, eval_split=0.0, max_length=200)
    found = rendered(rows, eval_split=0.0, max_length=200, on_bad_row="quarantine")
    assert [example.row for example in found[TRAIN]] == [0, 0]
