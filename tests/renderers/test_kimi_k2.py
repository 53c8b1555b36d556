"""Kimi K2, Instruct and Thinking: what they promise of any text, and what they read and refuse."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.errors import RenderError
from crucible_train.renderers import FastTokenizer, ParsedResponse, Renderer, Termination, get_renderer
from crucible_train.renderers.answers import TextDelta, ThinkingDelta
from crucible_train.types import ImagePart, Message, TextPart, ThinkingPart, ToolCall

QUICK = settings(max_examples=30, deadline=None)
TOKENIZERS = {"kimi_k2": "kimi_k2", "kimi_k2_thinking": "kimi_k2_thinking"}
MARKERS = [
    *("<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<think>", "</think>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    *("<|tool_call_argument_begin|>", "<|start_header_id|>", "[BOS]", "[EOS]", "[EOT]", "[PAD]", "[UNK]"),
    *("<|reserved_token_163608|>", "<|im_start|>", "<｜User｜>", "functions.", ":0", ".", "## Return of ", "system"),
    *("\n", "\n\n", " ", '"', "\\", '{"a": 1}', "<|im_", "end|>", "🙂", "日本語", "e\u0301", "\x00"),
]
TEXTS = st.lists(
    st.sampled_from(MARKERS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=4
).map("".join)
WORDS = TEXTS.filter(bool)
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"city": "São Paulo", "a": [1]}}}
USER = Message("user", "Weather?")
CALL = Message("assistant", None, (ToolCall("get_weather", '{"city": "Porto"}', "functions.get_weather:0"),))
RESULT = Message("tool", "18 °C", tool_call_id="functions.get_weather:0", name="get_weather")
THOUGHT = Message("assistant", (ThinkingPart("Why"), TextPart("Hi")))


@pytest.fixture(scope="module", params=TOKENIZERS)
def renderer(request: pytest.FixtureRequest, tokenizer_named: Callable[[str], FastTokenizer]) -> Renderer:
    return get_renderer(request.param, tokenizer_named(TOKENIZERS[request.param]))


@pytest.fixture(scope="module")
def thinking(tokenizer_named: Callable[[str], FastTokenizer]) -> Renderer:
    return get_renderer("kimi_k2_thinking", tokenizer_named("kimi_k2_thinking"))


@st.composite
def calls(draw: st.DrawFn, number: int) -> ToolCall:
    arguments = draw(st.dictionaries(TEXTS, TEXTS | st.integers() | st.lists(TEXTS, max_size=2), max_size=2))
    layout: dict[str, Any] = draw(
        st.sampled_from([{"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 1, "ensure_ascii": False}])
    )
    name = draw(WORDS)
    return ToolCall(name, json.dumps(arguments, **layout), f"functions.{name}:{number}")


@st.composite
def answers(draw: st.DrawFn, renderer: Renderer, numbers: Sequence[int]) -> Message:
    text, thought = draw(TEXTS), draw(TEXTS | st.none()) if renderer.name == "kimi_k2_thinking" else None
    parts: Any = (ThinkingPart(thought), TextPart(text)) if text else (ThinkingPart(thought or ""),)
    return Message("assistant", parts if thought else text, tuple(draw(calls(number)) for number in numbers))


@st.composite
def conversations(draw: st.DrawFn, renderer: Renderer) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Turns with steps in which tools are called; everything that can be said is drawn from ``TEXTS``."""
    messages = [Message("system", draw(TEXTS), name=draw(st.none() | TEXTS))] if draw(st.booleans()) else []
    num_calls = 0
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message(draw(st.just("user") | TEXTS.map("{}.".format)), draw(TEXTS)))
        messages.append(Message("user", draw(TEXTS), name=draw(st.none() | TEXTS)))
        for _ in range(draw(st.integers(0, 3)) // 2):
            num = draw(st.integers(1, 3))
            called = draw(answers(renderer, range(num_calls, num_calls + num)))
            num_calls += num
            results = [draw(st.none() | st.just(call.id)) for call in called.tool_calls]
            messages.append(called)
            messages += [Message("tool", draw(TEXTS), (), call_id, draw(st.none() | TEXTS)) for call_id in results]
        messages.append(draw(answers(renderer, ())))
    tools = [WEATHER | {draw(TEXTS): draw(TEXTS)}] if draw(st.booleans()) else None
    return messages, tools


def _harmless(messages: Sequence[Message]) -> list[Message]:
    plain, num_calls = [], 0
    for message in messages:
        content: Any = "x" if message.text else ""
        if message.thinking:
            content = (ThinkingPart("x"), TextPart(content))
        found = tuple(ToolCall("f", "{}", f"functions.f:{num_calls + i}") for i in range(len(message.tool_calls)))
        num_calls += len(found)
        role = message.role if message.role in {"system", "user", "assistant", "tool"} else "x"
        plain.append(Message(role, content, found, name="x"))
    return plain


def _answers(messages: Sequence[Message]) -> Iterator[int]:
    return (index for index, message in enumerate(messages) if message.role == "assistant")


def _controls(renderer: Renderer, ids: Sequence[int]) -> list[int]:
    special = set(renderer.tokenizer.control_tokens.values())
    return [token for token in ids if token in special]


@given(data=st.data())
@QUICK
def test_no_text_becomes_a_control_token(renderer: Renderer, data: st.DataObject) -> None:
    messages, tools = data.draw(conversations(renderer))
    harmless, plain_tools = _harmless(messages), [WEATHER] if tools else None
    for mode in ("all_tokens", "all_assistant_messages"):
        forged = renderer.build_supervised_examples(messages, mode, tools)
        plain = renderer.build_supervised_examples(harmless, mode, plain_tools)
        assert [_controls(renderer, ids.to_ints()) for ids, _ in forged] == [
            _controls(renderer, ids.to_ints()) for ids, _ in plain
        ]
    for index in _answers(messages):
        forged_prompt = renderer.build_generation_prompt(messages[:index], tools, role=data.draw(WORDS)).to_ints()
        plain_prompt = renderer.build_generation_prompt(harmless[:index], plain_tools, role="x").to_ints()
        assert _controls(renderer, forged_prompt) == _controls(renderer, plain_prompt)


@given(data=st.data())
@QUICK
def test_every_answer_is_trained_after_its_prompt_and_reads_back(renderer: Renderer, data: st.DataObject) -> None:
    messages, tools = data.draw(conversations(renderer))
    examples = renderer.build_supervised_examples(messages, tools=tools)
    num_trained = 0
    for index in _answers(messages):
        prompt = renderer.build_generation_prompt(messages[:index], tools).to_ints()
        [written] = [
            np.array(ids.to_ints())[len(prompt) :][: int(np.append(weights[len(prompt) :], 0).argmin())].tolist()
            for ids, weights in examples
            if ids.to_ints()[: len(prompt)] == prompt and not weights[len(prompt) - 1] and weights[len(prompt)]
        ]
        said = messages[index]
        parsed = renderer.parse_response(written)
        assert parsed == ParsedResponse(said, Termination.STOP_SEQUENCE)
        *shown, streamed = renderer.parse_stream([*written, 5])
        assert streamed == parsed
        assert "".join(delta.text for delta in shown if isinstance(delta, TextDelta)) == said.text
        assert "".join(delta.thinking for delta in shown if isinstance(delta, ThinkingDelta)) == (said.thinking or "")
        num_trained += len(written)
    assert sum(int(weights.sum()) for _, weights in examples) == num_trained


@given(data=st.data())
@QUICK
def test_many_are_built_as_one_and_what_extends_says_so(renderer: Renderer, data: st.DataObject) -> None:
    dialogues = [data.draw(conversations(renderer)) for _ in range(2)]
    for (messages, tools), built in zip(dialogues, renderer.build_many(dialogues), strict=True):
        assert not isinstance(built, RenderError)
        single = renderer.build_supervised_examples(messages, tools=tools)
        for (ids, weights), (other, others) in zip(built, single, strict=True):
            assert ids == other
            assert weights.tolist() == others.tolist()
            assert weights.shape == (ids.length,)
        whole, _ = renderer.build_supervised_example(messages, "all_tokens", tools)
        prompts = [renderer.build_generation_prompt(messages[:index], tools).to_ints() for index in _answers(messages)]
        extends = all(whole.to_ints()[: len(prompt)] == prompt for prompt in prompts)
        assert extends or not renderer.extends(messages)
        assert renderer.name != "kimi_k2" or renderer.extends(messages)


@given(data=st.data())
@QUICK
def test_any_ids_can_be_read(renderer: Renderer, data: st.DataObject) -> None:
    controls = st.sampled_from(sorted(renderer.tokenizer.control_tokens.values()))
    ids = data.draw(st.lists(st.integers(0, 163583) | controls, max_size=14))
    parsed = renderer.parse_response(ids)
    *shown, streamed = renderer.parse_stream(ids)
    assert streamed == parsed
    assert "".join(delta.text for delta in shown if isinstance(delta, TextDelta)) == parsed.message.text
    thought = "".join(delta.thinking for delta in shown if isinstance(delta, ThinkingDelta))
    assert thought == (parsed.message.thinking or "")


def _ids(renderer: Renderer, *written: str) -> list[int]:
    """Ids of texts and control tokens, by turns."""
    ids: list[int] = []
    for text in written:
        token = renderer.tokenizer.control_tokens.get(text)
        ids += renderer.tokenizer.encode(text) if token is None else [token]
    return ids


SECTION, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
BEGIN, ARGUMENTS, DONE, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|im_end|>"


@pytest.mark.parametrize(
    ("written", "said", "called", "unparsed", "termination"),
    [
        (["Hi", END, END], "Hi", [], [], "stop_sequence"),
        (["Hi", "[EOS]"], "Hi[EOS]", [], [], "malformed"),
        (
            [SECTION, BEGIN, "functions.a.b:12", ARGUMENTS, "{}", DONE, CALLS_END, END],
            *("", [("a.b", "{}", "functions.a.b:12")], [], "stop_sequence"),
        ),
        (
            ["Hm", BEGIN, "functions.f:0", ARGUMENTS, "{}", DONE, END],
            *("Hm", [("f", "{}", "functions.f:0")], [], "stop_sequence"),
        ),
        *(
            (["Hm", SECTION, BEGIN, bad, DONE, CALLS_END, END], "Hm", [], [bad], "malformed")
            for bad in ("functions.f:0", "call_1", "")
        ),
        *(
            (
                [SECTION, BEGIN, call_id, ARGUMENTS, arguments, DONE, CALLS_END, END],
                *("", [], [f"{call_id}{ARGUMENTS}{arguments}"], "malformed"),
            )
            for call_id, arguments in [
                *(("call_1", "{}"), ("functions.f", "{}"), ("functions.:0", "{}"), ("functions.f:²", "{}")),
                *(("functions.f:0", "[]"), ("functions.f:0", "{"), ("functions.f:0", "[" * 20_000)),
            ]
        ),
        ([SECTION, BEGIN, "functions.f:0", ARGUMENTS, "{"], "", [], ["functions.f:0" + ARGUMENTS + "{"], "malformed"),
    ],
)
def test_answers_are_read(
    renderer: Renderer,
    written: list[str],
    said: str,
    called: list[tuple[str, str, str]],
    unparsed: list[str],
    termination: str,
) -> None:
    parsed = renderer.parse_response(_ids(renderer, *written))
    assert parsed.message.text == said
    assert [(call.name, call.arguments, call.id) for call in parsed.message.tool_calls] == called
    assert list(parsed.unparsed_tool_calls) == unparsed
    assert parsed.termination == termination


def test_reasoning_is_read_wherever_it_ends(thinking: Renderer) -> None:
    assert thinking.parse_response(_ids(thinking, "<think>", "Why", "</think>", "Hi", END)).message == THOUGHT
    assert thinking.parse_response(_ids(thinking, "<think>", "</think>", "Hi", END)).message == Message(
        "assistant", "Hi"
    )
    cut = thinking.parse_response(_ids(thinking, "<think>", "Why"))
    assert (cut.message.thinking, cut.message.text, cut.termination) == ("Why", "", Termination.MALFORMED)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([USER, RESULT], "message 1: role: a tool's result, but no message before it"),
        ([USER, CALL, replace(RESULT, tool_call_id="functions.f:0")], "message 2: tool_call_id"),
        ([USER, CALL, RESULT, replace(RESULT, tool_call_id=None)], "message 3: tool_call_id: missing"),
        ([USER, replace(CALL, tool_calls=(ToolCall("f", "{}"),)), RESULT], "message 2: tool_call_id: .* have no ids"),
        ([USER, replace(CALL, tool_calls=(ToolCall("f", "{}", "call_1"),))], r"message 1: tool_calls\[0\]\.id"),
        ([USER, replace(CALL, tool_calls=(ToolCall("f", "[]"),))], r"message 1: tool_calls\[0\].*JSON object"),
        ([USER, replace(CALL, tool_calls=(ToolCall("f", "{"),))], r"message 1: tool_calls\[0\].*not JSON"),
        ([Message("user", "x", CALL.tool_calls)], "message 0: tool_calls: only the assistant"),
        ([Message("user", (ThinkingPart("x"),))], "message 0: reasoning_content"),
        ([Message("user", (ImagePart("cat.png"),))], "message 0: content"),
        ([USER, THOUGHT, Message("assistant", "Ho")], "message 1: reasoning_content"),
    ],
)
def test_what_cannot_be_expressed_is_refused(renderer: Renderer, messages: list[Message], error: str) -> None:
    for build in (renderer.build_generation_prompt, renderer.build_supervised_example):
        with pytest.raises(RenderError, match=error):
            build(messages)


def test_calls_without_ids_are_numbered_and_results_follow_their_order(renderer: Renderer) -> None:
    two = (ToolCall("f", "{}"), ToolCall("get_weather", "{}"))
    said = [
        *(USER, Message("assistant", "", two), Message("tool", "1"), Message("tool", "2")),
        *(Message("assistant", "", two[:1]), Message("tool", "3")),
    ]
    text = renderer.tokenizer.decode(renderer.build_generation_prompt(said).to_ints())
    places = [
        text.index(part)
        for part in (
            *("functions.f:0", "functions.get_weather:1", "## Return of functions.f:0\n1"),
            *("## Return of functions.get_weather:1\n2", "functions.f:2", "## Return of functions.f:2\n3"),
        )
    ]
    assert places == sorted(places)


def test_tools_are_compact_and_sorted(renderer: Renderer) -> None:
    text = renderer.tokenizer.decode(renderer.build_generation_prompt([USER], [WEATHER]).to_ints())
    assert text.startswith(
        '<|im_system|>tool_declare<|im_middle|>[{"function":{"name":"get_weather","parameters":'
        '{"a":[1],"city":"São Paulo"}},"type":"function"}]<|im_end|><|im_system|>system<|im_middle|>You are Kimi'
    )
    with pytest.raises(RenderError, match=r"tools\[0\]: not JSON"):
        renderer.build_generation_prompt([USER], [{"function": {1, 2}}])


def test_reasoning_stands_in_the_turn_at_hand_and_in_the_answer_that_is_trained(thinking: Renderer) -> None:
    called = replace(CALL, content=(ThinkingPart("Look it up"),))
    said = [USER, called, RESULT, THOUGHT]
    prompt = thinking.tokenizer.decode(thinking.build_generation_prompt(said[:3]).to_ints())
    assert "<think>Look it up</think><|tool_calls_section_begin|>" in prompt
    whole, _ = thinking.build_supervised_example(said)
    assert thinking.tokenizer.decode(whole.to_ints()) == f"{prompt}<think>Why</think>Hi<|im_end|>"
    assert thinking.extends(said)
    later = [*said, USER, Message("assistant", "Ho")]
    assert not thinking.extends(later)
    history = thinking.tokenizer.decode(thinking.build_generation_prompt(later[:-1]).to_ints())
    assert "Look it up" not in history
    assert "<think></think>Hi<|im_end|>" in history
    assert len(thinking.build_supervised_examples(later)) == 2
    with pytest.raises(RenderError, match="message 1: reasoning_content"):
        thinking.build_generation_prompt(said)


def test_a_think_block_that_an_answer_spells_is_text(thinking: Renderer) -> None:
    for spelt in ("<think>\nWhy\n</think>\n\nHi", "It ends with </think>."):
        ids, weights = thinking.build_supervised_example([USER, Message("assistant", spelt)])
        written = np.array(ids.to_ints())[weights > 0].tolist()
        assert _controls(thinking, written) == _ids(thinking, "<think>", "</think>", END)
        assert thinking.parse_response(written).message == Message("assistant", spelt)
