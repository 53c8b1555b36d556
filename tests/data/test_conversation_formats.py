"""Every conversation format is detected, stated, and read as the same messages."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crucible_train.data.conversations import FORMATS
from crucible_train.errors import DataError

USER, ASSISTANT, SYSTEM = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("system", "s"))
)
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":  1}'}}


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("row", "name", "columns", "expected"),
    [
        ({"messages": [USER, ASSISTANT]}, "messages", ["messages"], [USER, ASSISTANT]),
        ({"messages": json.dumps([USER, ASSISTANT])}, "messages", ["messages"], [USER, ASSISTANT]),
        ({"id": 3, "messages": [SYSTEM, USER, ASSISTANT]}, "messages", ["messages"], [SYSTEM, USER, ASSISTANT]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            "sharegpt",
            ["conversations"],
            [SYSTEM, USER, ASSISTANT],
        ),
        ({"conversations": [USER, ASSISTANT]}, "sharegpt", ["conversations"], [USER, ASSISTANT]),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", ["prompt", "completion"], [USER, ASSISTANT]),
        ({"question": "q", "answer": "a"}, "prompt_completion", ["question", "answer"], [USER, ASSISTANT]),
        ({"query": "q", "response": "a"}, "prompt_completion", ["query", "response"], [USER, ASSISTANT]),
        ({"problem": "q", "solution": "a"}, "prompt_completion", ["problem", "solution"], [USER, ASSISTANT]),
        (
            {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
            "prompt_completion",
            ["prompt", "completion"],
            [SYSTEM, USER, ASSISTANT],
        ),
        ({"instruction": "q", "output": "a"}, "alpaca", ["instruction", "output"], [USER, ASSISTANT]),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", ["instruction", "output"], [USER, ASSISTANT]),
        (
            {"instruction": "q", "input": "i", "output": "a", "system": "s"},
            "alpaca",
            ["instruction", "output"],
            [SYSTEM, {"role": "user", "content": "q\n\ni"}, ASSISTANT],
        ),
    ],
)
def test_a_row_is_read_as_the_messages_it_means_and_its_format_is_stated(row, name, columns, expected, prepared):
    found = prepared(lines(row))
    assert found.conversations == [expected]
    assert (found.summary["format"], found.summary["columns"]) == (name, columns)
    assert found.summary["mean_turns"] == len(expected)


@pytest.mark.parametrize(
    ("speakers", "roles"),
    [
        (["human", "gpt"], ["user", "assistant"]),
        (["USER", "Bing"], ["user", "assistant"]),
        (["system", "human", "model", "observation", "chatgpt"], ["system", "user", "assistant", "tool", "assistant"]),
    ],
)
def test_the_names_that_sharegpt_gives_to_speakers_are_known(speakers, roles, prepared):
    found = prepared(lines({"conversations": [{"from": speaker, "value": "x"} for speaker in speakers]}))
    assert [message["role"] for message in found.conversations[0]] == roles


def test_tools_calls_and_thinking_survive_the_way_to_the_disk_and_back(prepared):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "1", "tool_call_id": "1", "name": "f"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
    ]
    found = prepared(lines({"messages": messages, "tools": tools}, {"messages": messages, "tools": json.dumps(tools)}))
    assert found.conversations == [messages, messages]
    assert [list(found.dialogues[row].tools) for row in (0, 1)] == [tools, tools]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"q": "q", "a": "a"}, {"prompt": "q", "completion": "a"}),
        ({"q": "q", "completion": "a"}, {"prompt": "q"}),
        ({"prompt": "a", "completion": "q"}, {"prompt": "completion", "completion": "prompt"}),
        ({"chat": [USER, ASSISTANT]}, {"messages": "chat"}),
        ({"input": "q", "target": "a"}, {"instruction": "input", "output": "target"}),
    ],
)
def test_columns_can_be_renamed_even_for_each_other(row, columns, prepared):
    assert prepared(lines(row), columns=columns).conversations == [[USER, ASSISTANT]]


def test_a_rename_of_a_column_that_is_not_there_says_what_is(prepared):
    with pytest.raises(DataError, match=r"data\.columns names a column 'text', but the row has q, a"):
        prepared(lines({"q": "q", "a": "a"}), columns={"prompt": "text", "completion": "a"})


def test_a_format_that_is_asked_for_is_taken_over_the_one_that_would_be_detected(prepared):
    row = {"messages": [USER, USER], "prompt": "q", "completion": "a"}
    assert prepared(lines(row), format="prompt_completion").conversations == [[USER, ASSISTANT]]


def test_columns_that_no_format_has_are_answered_with_what_is_there_what_is_taken_and_the_line_to_add(prepared):
    with pytest.raises(DataError) as caught:
        prepared(lines({"source": "q", "target": "a", "id": 1}))
    assert str(caught.value).partition("rows.jsonl: ")[2] == (
        "the columns are source, target, id, and no conversation format has them. "
        "Taken are comparison: prompt and completion_A and completion_B and label; messages: messages; "
        "sharegpt: conversations; alpaca: instruction and output; "
        "prompt_completion: prompt and completion. "
        "To map yours, add: data.columns={prompt: source, completion: target}"
    )


def test_one_odd_row_in_front_is_set_aside_like_any_other(prepared):
    found = prepared(lines({"note": "x"}, {"prompt": "q", "completion": "a"}), on_bad_row="quarantine")
    assert found.conversations == [[USER, ASSISTANT]]
    assert found.summary["format"] == "prompt_completion"
    assert found.quarantined[0]["where"].endswith("rows.jsonl:1")


def test_columns_that_no_row_has_are_the_same_error_when_rows_are_set_aside(prepared):
    with pytest.raises(DataError, match=r"To map yours, add: data\.columns=\{prompt: note, completion: YOUR_COLUMN\}"):
        prepared(lines({"note": "x"}, {"note": "y"}), on_bad_row="quarantine")


def test_nested_columns_of_a_table_are_messages(tmp_path, prepared):
    pq.write_table(pa.table({"messages": [[USER, ASSISTANT], [USER, ASSISTANT]]}), tmp_path / "rows.parquet")
    assert prepared(tmp_path / "rows.parquet").conversations == [[USER, ASSISTANT]] * 2


def test_a_second_data_set_may_be_held_out(tmp_path, prepared):
    (tmp_path / "held.csv").write_text("question,answer\nq2,a2\n")
    found = prepared(lines({"messages": [USER, ASSISTANT]}), eval_split=str(tmp_path / "held.csv"))
    assert found.summary["num_rows"] == 1
    assert found.summary["num_held_out_rows"] == 1
    assert found.summary["held_out_source"] == str(tmp_path / "held.csv")


def test_an_empty_second_data_set_is_named_by_its_own_field(tmp_path, prepared):
    (tmp_path / "held.jsonl").touch()
    with pytest.raises(DataError, match=r"^data\.eval_split: .*held\.jsonl: it holds no rows"):
        prepared(lines({"messages": [USER, ASSISTANT]}), eval_split=str(tmp_path / "held.jsonl"))


def test_completions_that_are_labelled_wanted_or_not_are_no_examples() -> None:
    """An unwanted answer would be learnt like a wanted one; a label that is no truth value is another column."""
    row = {"prompt": "2 + 2?", "completion": "5"}
    form = next(form for form in FORMATS if form.name == "prompt_completion")
    assert form.read({**row, "label": "maths"})[-1]["content"] == "5"
    for label in (True, False):
        with pytest.raises(DataError, match="kto learns from both kinds"):
            form.read({**row, "label": label})
