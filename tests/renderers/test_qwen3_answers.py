"""What is read from the answers of Qwen3 models: reasoning, words, calls, and how they end."""

import pytest

from crucible_train.renderers import FastTokenizer, ParsedResponse, Renderer, Termination, get_renderer
from crucible_train.types import Message, ToolCall


def _read(renderer: Renderer, *stretches: str) -> ParsedResponse:
    """What is read from text and control tokens; a stretch that is a control token's name is that token."""
    ids: list[int] = []
    for stretch in stretches:
        control = renderer.tokenizer.control_tokens.get(stretch)
        ids += renderer.tokenizer.encode(stretch) if control is None else [control]
    return renderer.parse_response(ids)


END, CALL, END_CALL = "<|im_end|>", "<tool_call>", "</tool_call>"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('\n{"name": "f", "arguments": {"b": 1,"a" :2}}\n', ToolCall("f", '{"b": 1,"a" :2}')),
        ('{"name":"f","arguments":{"b":1}}', ToolCall("f", '{"b": 1}')),
        ('{"arguments": {"ä": 1}, "name": "f"}', ToolCall("f", '{"ä": 1}')),
        ('{"name": "f", "arguments": "{\\"b\\":1}"}', ToolCall("f", '{"b":1}')),
        ('\n{"name": "\\u00e4", "arguments": {"b": "\\ud800"}}\n', ToolCall("ä", '{"b": "\\ud800"}')),
        ('\n{"name": "f", "arguments": {}, "id": "1"}\n', ToolCall("f", "{}")),
        ('\n{"name": "f", "arguments": {}', None),
        ('\n{"name": "f"}\n', None),
        ('\n{"name": 1, "arguments": {}}\n', None),
        ('\n{"name": "\\ud800", "arguments": {}}\n', None),
        ('{"name":"f","arguments":{"b":"\\ud800"}}', None),
        ('\n{"name": "f", "arguments": [1]}\n', None),
        ('\n{"name": "f", "arguments": "x"}\n', None),
        ("[" * 100_000, None),
        ("\n[]\n", None),
        ("", None),
    ],
)
def test_a_call_is_read_or_kept_as_it_was_written(
    qwen3: FastTokenizer, written: str, expected: ToolCall | None
) -> None:
    parsed = _read(get_renderer("qwen3_instruct", qwen3), "Look.\n", CALL, written, END_CALL, END)
    assert parsed.message == Message("assistant", "Look.", (expected,) if expected else ())
    assert parsed.unparsed_tool_calls == (() if expected else (written,))
    assert parsed.termination is (Termination.STOP_SEQUENCE if expected else Termination.MALFORMED)


F = '\n{"name": "f", "arguments": {}}\n'


@pytest.mark.parametrize(
    ("name", "stretches", "content", "num_calls", "termination"),
    [
        ("qwen3", ["<think>", "\nHm.\n", "</think>", "\n\nYes.", END], ("Hm.", "Yes."), 0, "stop_sequence"),
        ("qwen3", ["<think>", "\n\n", "</think>", "\n\nYes.", END, END], ("", "Yes."), 0, "stop_sequence"),
        ("qwen3", ["Yes.", END, "more", END], ("", "Yes."), 0, "stop_sequence"),
        ("qwen3", ["Yes.", "<|endoftext|>"], ("", "Yes."), 0, "end_of_text"),
        (
            "qwen3",
            ["<think>", "\nA ", CALL, " is", "</think>", "Yes.", END],
            ("A <tool_call> is", "Yes."),
            0,
            "stop_sequence",
        ),
        ("qwen3", ["<think>", "\nHm."], ("Hm.", ""), 0, "malformed"),
        (
            "qwen3",
            ["<think>", "Hm.", "</think>", CALL, F, END_CALL, "\n", CALL, F, END_CALL, END],
            ("Hm.", ""),
            2,
            "stop_sequence",
        ),
        ("qwen3", ["Look.\n", CALL, F, END], ("", "Look."), 0, "malformed"),
        ("qwen3", ["No ", END_CALL, "</think>", END], ("", "No </tool_call></think>"), 0, "stop_sequence"),
        ("qwen3_vl", ["Hm.\n", "</think>", "\n\nYes.", END], ("Hm.", "Yes."), 0, "stop_sequence"),
        ("qwen3_vl", ["<think>", "\nHm.\n", "</think>", "Yes.", END], ("Hm.", "Yes."), 0, "stop_sequence"),
        ("qwen3_vl", ["Hm.", END], ("Hm.", ""), 0, "stop_sequence"),
        ("qwen3_disable_thinking", ["Yes.", END], ("", "Yes."), 0, "stop_sequence"),
        ("qwen3_instruct", ["<think>", "Hm.", END], ("", "<think>Hm."), 0, "stop_sequence"),
        ("qwen3_instruct", [END], ("", ""), 0, "stop_sequence"),
        ("qwen3_instruct", [], ("", ""), 0, "malformed"),
    ],
)
def test_an_answer_is_read_up_to_its_stop(
    qwen3: FastTokenizer,
    name: str,
    stretches: list[str],
    content: tuple[str, str],
    num_calls: int,
    termination: str,
) -> None:
    parsed = _read(get_renderer(name, qwen3), *stretches)
    assert (parsed.message.thinking or "", parsed.message.text) == content
    assert len(parsed.message.tool_calls) == num_calls
    assert parsed.termination == termination
