"""A row that cannot be used is named by file and line, with what is wrong; it stops the run or is set aside."""

# ruff: noqa: E501 - messages stand whole, as the user sees them

import json

import pytest

from crucible_train.errors import DataError

GOOD = '{"prompt": "q", "completion": "a"}'
EM = "m" * 60


def chat(*messages: tuple[str, object]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in messages]})


def problem(prepared, line: str | bytes) -> str:
    """What is said of ``line`` where it stands second, without the folder."""
    data = line if isinstance(line, bytes) else line.encode()
    first = chat(("user", "q"), ("assistant", "a")) if b'"messages"' in data else GOOD
    with pytest.raises(DataError) as caught:
        prepared(first.encode() + b"\n" + data + b"\n")
    return str(caught.value).splitlines()[0].rpartition("/")[2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "q", "completion": "a}', """rows.jsonl:2:31: broken JSON: unterminated string   ' "q", "completion": "a}'"""),
        (
            f'{{"prompt": "{EM}", "completion": a{EM}}}',
            f"""rows.jsonl:2:90: broken JSON: expecting value   '{"m" * 3}", "completion": a{"m" * 19}'""",
        ),
        ('{"prompt": "q" "completion": "a"}', """rows.jsonl:2:16: broken JSON: expecting ',' delimiter   '{"prompt": "q" "completion": "a"}'"""),
        ('{"prompt": "q",}', None),
        ("not json", "rows.jsonl:2:1: broken JSON: expecting value   'not json'"),
        (GOOD + GOOD, """rows.jsonl:2:35: broken JSON: extra data   ', "completion": "a"}{"prompt": "q", "com'"""),
        ('{"prompt": "a\tb"}', """rows.jsonl:2:14: broken JSON: invalid control character   '{"prompt": "a\\tb"}'"""),
        ('["q", "a"]', "rows.jsonl:2: a row must be an object, not a list"),
        ("3", "rows.jsonl:2: a row must be an object, not a number"),
        ("null", "rows.jsonl:2: a row must be an object, not null"),
        ('"q"', "rows.jsonl:2: a row must be an object, not text"),
        (b'{"prompt": "caf\xe9", "completion": "a"}', """rows.jsonl:2:16: not UTF-8: byte 0xe9   '{"prompt": "caf\ufffd", "completion": "a'"""),
        (r'{"prompt": "\ud83d", "completion": "a"}', r"rows.jsonl:2: \ud83d is half of a surrogate pair, and the other half is missing"),
        ("[" * 100_000, "rows.jsonl:2: nested too deeply"),
        ('{"n": ' + "1" * 5000 + "}", "rows.jsonl:2: a number has too many digits"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_is_named_by_file_line_and_column_with_a_snippet(line, said, prepared):
    found = problem(prepared, line)
    if said is None:  # the wording of this one is the Python version's
        assert found.startswith("rows.jsonl:2:")
    else:
        assert found == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "q"}', "column 'completion' is missing; the row has prompt"),
        ("{}", "column 'prompt' is missing; the row has none"),
        ('{"prompt": null, "completion": "a"}', "prompt is null"),
        ('{"prompt": 3, "completion": "a"}', "prompt must be a list of messages, not int"),
        (chat(("assistant", "a"), ("user", "q")), "message 0: role order: the assistant speaks before any user"),
        (chat(("user", "q"), ("user", "q")), "message 1: role order: two user messages in a row"),
        (chat(("user", "q"), ("assistant", "a"), ("assistant", "b")), "message 2: role order: two assistant messages in a row"),
        (chat(("user", "q"), ("tool", "a")), "message 1: role order: a tool answers, but no assistant has called it"),
        (chat(("usr", "q")), "message 0: role 'usr' is unknown; did you mean 'user'?"),
        (chat(("narrator", "q")), "message 0: role 'narrator' is unknown; known are system, developer, user, assistant, tool"),
        (chat(("user", None)), "message 0: content is missing"),
        (chat(("user", 7)), "message 0: content must be text or a list of parts, not int"),
        ('{"messages": []}', "the conversation has no messages"),
        ('{"messages": "hello"}', "messages must be a list of messages, not text"),
        ('{"messages": "\\"hello\\""}', "messages must be a list of messages, not str"),
        ('{"messages": [3]}', "message 0 must be an object with role and content, not int"),
        ('{"messages": [{"role": "user", "content": "q"}], "tools": [1]}', "tools must be a list of objects"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_conversation_says_which_field_of_which_message(line, said, prepared):
    found = problem(prepared, line)
    assert found == f"rows.jsonl:2: {said}"


def test_all_bad_rows_are_counted_the_first_five_shown_and_the_way_out_named(prepared):
    with pytest.raises(DataError) as caught:
        prepared("\n".join([GOOD, *["{"] * 7, GOOD]).encode())
    *shown, last = str(caught.value).splitlines()
    assert [line.rpartition("/")[2].partition(" ")[0] for line in shown] == [f"rows.jsonl:{n}:2:" for n in range(2, 7)]
    assert last == (
        "7 of 9 rows are bad (the first 5 are shown); mend them, or set them aside with data.on_bad_row=quarantine"
    )


def test_rows_set_aside_keep_their_place_reason_problem_and_snippet(prepared):
    found = prepared("\n".join([GOOD, "{", '{"prompt": "q"}', GOOD]).encode(), on_bad_row="quarantine")
    assert len(found.conversations) == found.summary["num_rows"] == 2
    assert (found.summary["num_bad_rows"], found.summary["bad_rows"]) == (2, {"not_a_conversation": 1, "unreadable": 1})
    file = found.summary["source"]
    assert found.quarantined == [
        {
            "where": f"{file}:2:2",
            "reason": "unreadable",
            "problem": "broken JSON: expecting property name enclosed in double quotes",
            "snippet": "{",
        },
        {
            "where": f"{file}:3",
            "reason": "not_a_conversation",
            "problem": "column 'completion' is missing; the row has prompt",
            "snippet": None,
        },
    ]
    assert [found.dialogues.where(row) for row in (0, 1)] == [f"{file}:1", f"{file}:4"]


def test_bad_rows_of_both_data_sets_are_counted_among_all_rows(tmp_path, prepared):
    (tmp_path / "held.jsonl").write_text(f"{GOOD}\n" * 3 + "{\n")
    with pytest.raises(DataError, match=r"2 of 7 rows are bad; mend them"):
        prepared("\n".join([GOOD, "{", GOOD]).encode(), eval_split=str(tmp_path / "held.jsonl"))


def test_a_set_without_a_good_row_is_an_error_with_the_reasons_counted(prepared):
    with pytest.raises(DataError) as caught:
        prepared(b'{\n{\n{"prompt": "q", "answers": 1}\n', format="prompt_completion", on_bad_row="quarantine")
    assert str(caught.value).partition("rows.jsonl: ")[2].partition("/")[0] == (
        "none of its 3 rows can be used (not_a_conversation 1, unreadable 2); the first: "
    )


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("on_bad_row", ["stop", "quarantine"])
def test_an_empty_set_is_an_error_that_shows_a_row(data, on_bad_row, prepared):
    with pytest.raises(DataError) as caught:
        prepared(data, on_bad_row=on_bad_row)
    assert str(caught.value).endswith(
        'rows.jsonl: it holds no rows; a row is a conversation, such as {"prompt": "What is 2 + 2?", "completion": "4"}'
    )


CSV = {
    b'q,"a"x\r\n': ":2: broken CSV: ',' expected after '\"'",
    b"only\r\n": ":2: 1 values stand under 2 columns   'only'",
    b"a,b,c\r\n": ":2: 3 values stand under 2 columns   'a,b,c'",
    b"caf\xe9,a\r\n": ":2: not UTF-8",
}


@pytest.mark.parametrize("line", CSV)
def test_a_broken_line_of_a_table_is_one_bad_row_and_the_rows_after_it_are_read(line, tmp_path, prepared):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,completion\r\n" + line + b'"q\r\nq",a\r\nq,a\r\n')
    with pytest.raises(DataError) as caught:
        prepared(path)
    first, last = str(caught.value).splitlines()
    assert first == f"{path}{CSV[line]}"
    assert last.startswith("1 of 3 rows is bad")
    found = prepared(path, on_bad_row="quarantine")
    assert [found.dialogues.where(row) for row in (0, 1)] == [f"{path}:3", f"{path}:5"]


@pytest.mark.parametrize(
    ("header", "said"),
    [("prompt,prompt,completion", "the column 'prompt' stands twice in the header"), ("frågé,a", "not UTF-8")],
)
def test_a_header_that_would_lose_columns_is_refused(header, said, tmp_path, prepared):
    (tmp_path / "rows.csv").write_bytes(f"{header}\na,b,c\n".encode("latin-1"))
    with pytest.raises(DataError, match=rf"rows\.csv:1: .*{said}"):
        prepared(tmp_path / "rows.csv", on_bad_row="quarantine")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[\n {"prompt": "q",\n  "completion": }]', ":3:17: broken JSON: expecting value"),
        ('[{"prompt": "q", "completion": "a"}, 7]', " row 2: a row must be an object, not a number"),
        ("7", ":1: a list of rows is needed, not a number"),
    ],
)
def test_a_json_document_names_line_and_column_or_the_row(text, said, tmp_path, prepared):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "rows.json")
    assert f"rows.json{said}" in str(caught.value)


def test_what_is_no_parquet_file_is_said_to_be_none(tmp_path, prepared):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(DataError, match=r"rows\.parquet: not a Parquet file: "):
        prepared(tmp_path / "rows.parquet")


def test_a_value_that_json_has_no_form_for_is_a_bad_row(tmp_path, prepared):
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = [{"role": "user", "content": [{"type": "image", "image": b"\x89PNG"}]}]
    pq.write_table(pa.table({"messages": [picture]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="row 1: a value cannot be stored as JSON: Object of type bytes"):
        prepared(tmp_path / "rows.parquet")


def test_a_table_value_that_is_not_utf8_is_one_bad_row(tmp_path, prepared):
    import pyarrow as pa
    import pyarrow.parquet as pq

    damaged = pa.array([b"q", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"prompt": damaged, "completion": ["a", "a"]}), tmp_path / "rows.parquet")
    found = prepared(tmp_path / "rows.parquet", on_bad_row="quarantine")
    assert len(found.conversations) == 1
    assert found.quarantined[0]["where"].endswith("rows.parquet row 2")
    assert found.quarantined[0]["problem"] == "not UTF-8"
