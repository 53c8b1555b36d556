"""Preferences in every form they are written in, and those that say nothing of what is preferred."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.adapters.row_store.store import RowStore
from crucible_train.config.sections import PreferenceDataConfig
from crucible_train.data.preference_preparation import PAIRS, prepare
from crucible_train.data.preference_rendering import render
from crucible_train.data.preference_tables import Preferences, RenderedPreferences
from crucible_train.data.preparation import QUARANTINE
from crucible_train.data.render_rows import RendererSpec
from crucible_train.data.rendering import TRAIN, VALIDATION
from crucible_train.errors import DataError

Prepare = Callable[..., tuple[Path, dict[str, Any]]]
HH = "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: 2 + 2?\n\nAssistant:"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


GOOD = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    """Prepare rows; the folder and what was found."""

    def run(*rows: Any, **options: Any) -> tuple[Path, dict[str, Any]]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = tmp_path / "prepared"
        return folder, dict(prepare(RowStore(), str(path), PreferenceDataConfig(**options), folder))

    return run


def read(folder: Path) -> list[tuple[Any, Any, Any]]:
    found = Preferences(folder / PAIRS)

    def plain(messages: Any) -> Any:
        return None if messages is None else [message.to_dict() for message in messages]

    rows = [found[index] for index in range(len(found))]
    return [(plain(row.prompt), plain(row.chosen), plain(row.rejected)) for row in rows]


def quarantined(folder: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (folder / QUARANTINE).read_text().splitlines()]
    return [(row["reason"], row["problem"]) for row in rows]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (GOOD, ([user("2 + 2?")], [said("4")], [said("5")])),
        (
            {"prompt": [user("2 + 2?")], "chosen": [said("4")], "rejected": [said("5")]},
            ([user("2 + 2?")], [said("4")], [said("5")]),
        ),
        (  # whole conversations that repeat the prompt, as UltraFeedback writes them
            {
                "prompt": "2 + 2?",
                "chosen": [user("2 + 2?"), said("4")],
                "rejected": [user("2 + 2?"), said("5")],
                "system": "Add.",
            },
            ([{"role": "system", "content": "Add."}, user("2 + 2?")], [said("4")], [said("5")]),
        ),
        (  # no prompt: what both begin with
            {"chosen": [user("Hi."), said("Hello!"), user("?"), said("4")]}
            | {"rejected": [user("Hi."), said("Hello!"), user("?"), said("5")]},
            ([user("Hi."), said("Hello!"), user("?")], [said("4")], [said("5")]),
        ),
        (
            {"chosen": HH + " 4", "rejected": HH + " 5"},
            ([user("Hi."), said("Hello!"), user("2 + 2?")], [said("4")], [said("5")]),
        ),
        (
            {"prompt": HH, "chosen": " 4", "rejected": " 5"},
            ([user("Hi."), said("Hello!"), user("2 + 2?")], [said("4")], [said("5")]),
        ),
        (  # whole transcripts that repeat the prompt
            {"prompt": HH, "chosen": HH + " 4", "rejected": HH + " 5"},
            ([user("Hi."), said("Hello!"), user("2 + 2?")], [said("4")], [said("5")]),
        ),
        (
            {"prompt": "2 + 2?", "completion_A": "5", "completion_B": "4", "label": "B"},
            ([user("2 + 2?")], [said("4")], [said("5")]),
        ),
        (
            {"prompt": "2 + 2?", "completion_A": [said("4")], "completion_B": "5", "label": "a"},
            ([user("2 + 2?")], [said("4")], [said("5")]),
        ),
        ({"prompt": "2 + 2?", "completion": "4", "label": True}, ([user("2 + 2?")], [said("4")], None)),
        ({"prompt": "2 + 2?", "completion": "5", "label": 0}, ([user("2 + 2?")], None, [said("5")])),
    ],
)
def test_a_preference_is_read(prepared: Prepare, row: Any, expected: Any) -> None:
    folder, summary = prepared(row)
    assert read(folder) == [expected]
    assert summary["num_unpaired"] == (None in expected)
    assert quarantined(folder) == []


def test_a_completion_may_call_tools(prepared: Prepare) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    result = {"role": "tool", "content": "4"}
    folder, _ = prepared({"chosen": [user("2 + 2?"), call, result, said("4")], "rejected": [user("2 + 2?"), said("5")]})
    ((prompt, chosen, rejected),) = read(folder)
    assert (prompt, rejected) == ([user("2 + 2?")], [said("5")])
    assert [message["role"] for message in chosen] == ["assistant", "tool", "assistant"]


SET_ASIDE = [
    (GOOD | {"rejected": "4"}, "equal_sides"),
    ({"chosen": [user("a"), said("b")], "rejected": [user("a"), said("b")]}, "equal_sides"),
    ({"chosen": HH + " 4", "rejected": HH + " 4"}, "equal_sides"),
    ({"chosen": [user("a"), said("b")], "rejected": [user("c"), said("d")]}, "different_prompts"),
    (GOOD | {"chosen": [user("3 + 3?"), said("6")]}, "different_prompts"),
    (
        {"chosen": [user("a"), said("b"), user("c"), said("d")]}
        | {"rejected": [user("a"), said("x"), user("c"), said("y")]},
        "different_prompts",
    ),
    ({"prompt": "a", "completion_A": "b", "completion_B": "c", "label": "Tie"}, "tie"),
    ({"prompt": "a", "completion_A": "b", "completion_B": "b", "label": "A"}, "equal_sides"),
]


@pytest.mark.parametrize(("row", "reason"), SET_ASIDE)
def test_a_pair_that_says_nothing_is_set_aside_and_stops_nothing(prepared: Prepare, row: Any, reason: str) -> None:
    other = dict(GOOD) if "chosen" in row else {"prompt": "1?", "completion_A": "b", "completion_B": "c", "label": "B"}
    folder, summary = prepared(row, other)
    assert [found for found, _ in quarantined(folder)] == [reason]
    assert summary["bad_rows"] == {reason: 1}
    assert summary["num_rows"] == 1


def test_ties_are_counted_and_a_win_of_nobody(prepared: Prepare) -> None:
    labels = ("A", "Tie", "B", "tie", "B")
    rows = [{"prompt": "q", "completion_A": "x", "completion_B": "y", "label": label} for label in labels]
    folder, summary = prepared(*rows)
    assert summary["bad_rows"] == {"tie": 2}
    assert [chosen[0]["content"] for _, chosen, _ in read(folder)] == ["x", "y", "y"]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"chosen": "4", "rejected": "5"}, "chosen is text and there is no prompt"),
        (GOOD | {"chosen": None}, "chosen is null"),
        (GOOD | {"rejected": None}, "rejected is null"),
        (GOOD | {"chosen": 4}, "chosen must be a list of messages, not int"),
        ({"prompt": "a", "completion_A": "b", "completion_B": "c", "label": "C"}, "label must be A, B or Tie"),
        ({"prompt": "a", "completion_A": "b", "completion_B": "c", "label": None}, "label must be A, B or Tie"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "label must be true or false, not 'good'"),
        ({"chosen": [said("a")], "rejected": [said("b")]}, "nothing stands before the answer"),
        ({"prompt": [user("a")], "chosen": [], "rejected": [said("b")]}, "the conversation has no messages"),
        ({"prompt": [user("a"), said("b")], "chosen": [said("c")], "rejected": [said("d")]}, "two assistant messages"),
        ({"prompt": [user("a"), user("b")], "chosen": [said("c")], "rejected": [said("d")]}, "two user messages"),
        ({"chosen": HH + " 4", "rejected": HH}, "rejected: an answer is empty"),
        (GOOD | {"chosen": ""}, "chosen: an answer is empty"),
        (GOOD | {"system": 3}, "system must be text, not int"),
        ({"question_text": "a", "better": "b"}, r"no preference format has them.*data.columns=\{chosen: question_text"),
    ],
)
def test_a_bad_row_stops_the_run_with_its_place_and_what_is_wrong(prepared: Prepare, row: Any, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        prepared(row)
    assert "rows.jsonl" in str(caught.value)


def test_a_bad_row_is_set_aside_where_that_is_asked_for(prepared: Prepare) -> None:
    folder, summary = prepared(GOOD, GOOD | {"chosen": None}, GOOD | {"rejected": "4"}, on_bad_row="quarantine")
    assert summary["bad_rows"] == {"equal_sides": 1, "not_a_conversation": 1}
    assert quarantined(folder)[0] == ("not_a_conversation", "chosen is null")


def test_nothing_but_ties_is_nothing_to_train_on(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"none of its 1 rows can be used \(tie 1\)"):
        prepared({"prompt": "a", "completion_A": "b", "completion_B": "c", "label": "Tie"})
    with pytest.raises(DataError, match="it holds no rows; a row is a pair, such as"):
        prepared()


def test_columns_are_renamed(prepared: Prepare) -> None:
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    folder, summary = prepared({"q": "2 + 2?", "good": "4", "bad": "5"}, columns=columns)
    assert read(folder) == [([user("2 + 2?")], [said("4")], [said("5")])]
    assert summary["format"] == "pairs"


def test_a_column_that_is_renamed_away_is_named_with_what_took_it(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"'rejected' is missing; data\.columns reads it as 'chosen'; the row has"):
        prepared(GOOD, columns={"chosen": "rejected"})


def rendered(folder: Path, spec: RendererSpec, tmp_path: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    out = tmp_path / "rendered"
    return out, dict(render(folder, spec, PreferenceDataConfig(**options), 0, out))


def test_both_sides_share_the_prompts_tokens_and_only_completions_count(
    prepared: Prepare, smollm2: RendererSpec, tmp_path: Path
) -> None:
    folder, _ = prepared(GOOD | {"chosen": "four", "rejected": "22"})
    out, summary = rendered(folder, smollm2, tmp_path, eval_split=0)
    (found,) = RenderedPreferences(out / TRAIN)
    assert found.chosen is not None
    assert found.rejected is not None
    num = found.chosen.num_prompt
    assert num == found.rejected.num_prompt
    assert found.chosen.tokens_T[:num].tolist() == found.rejected.tokens_T[:num].tolist()
    tokenizer = smollm2.make().tokenizer
    for side, word in ((found.chosen, "four"), (found.rejected, "22")):
        trained = side.tokens_T[side.weights_T != 0].tolist()
        assert trained == [*tokenizer.encode(word), tokenizer.control_tokens["<|im_end|>"]]
    sizes = [side.tokens_T.size for side in (found.chosen, found.rejected)]
    assert summary["train"]["num_tokens"] == sum(sizes) - num
    assert summary["train"]["num_sequences"] == 2


def test_rows_of_one_prompt_are_held_out_together(prepared: Prepare, smollm2: RendererSpec, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i // 3}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(30)]
    folder, _ = prepared(*rows)
    out, _ = rendered(folder, smollm2, tmp_path, eval_split=0.2)
    train, held_out = ({found.row // 3 for found in RenderedPreferences(out / name)} for name in (TRAIN, VALIDATION))
    assert len(held_out) == 2
    assert not train & held_out
    assert len(train) == 8


def test_unpaired_rows_have_one_side(prepared: Prepare, smollm2: RendererSpec, tmp_path: Path) -> None:
    folder, _ = prepared(*({"prompt": f"q{i}", "completion": "x", "label": bool(i % 2)} for i in range(4)))
    out, summary = rendered(folder, smollm2, tmp_path, eval_split=0)
    sides = [[number for number, _ in found.sides] for found in RenderedPreferences(out / TRAIN)]
    assert sides == [[-1], [1], [-1], [1]]
    assert summary["train"]["num_sequences"] == 4


def test_a_side_that_is_too_long_sets_the_pair_aside(prepared: Prepare, smollm2: RendererSpec, tmp_path: Path) -> None:
    folder, _ = prepared(GOOD, {"prompt": "3 + 1?", "chosen": "4", "rejected": "x" * 300})
    out, summary = rendered(folder, smollm2, tmp_path, eval_split=0, max_length=150, on_bad_row="quarantine")
    assert summary["bad_rows"] == {"too_long": 1}
    assert quarantined(out)[0][1].startswith("rejected: ")
    assert len(RenderedPreferences(out / TRAIN)) == 1
    with pytest.raises(DataError, match=r"rejected: .* tokens are more than data\.max_length=150"):
        rendered(folder, smollm2, tmp_path, eval_split=0, max_length=150)


def test_sides_that_a_format_writes_alike_are_equal(prepared: Prepare, smollm2: RendererSpec, tmp_path: Path) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    folder, _ = prepared(GOOD, {"prompt": "3 + 1?", "chosen": "4", "rejected": "4\n"})
    spec = RendererSpec("chat_template", {"template": template}, smollm2.tokenizer_dir)
    out, summary = rendered(folder, spec, tmp_path, eval_split=0)
    assert summary["bad_rows"] == {"equal_sides": 1}
    assert len(RenderedPreferences(out / TRAIN)) == 1
