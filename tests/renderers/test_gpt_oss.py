"""gpt-oss beyond the reference renderings: the date, tool types, errors, answers, and what holds for any text."""

import json
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.errors import ConfigError, RenderError
from crucible_train.renderers import (
    FastTokenizer,
    ParsedResponse,
    Renderer,
    Termination,
    TextDelta,
    ThinkingDelta,
    get_renderer,
)
from crucible_train.types import ImagePart, Message, TextPart, ThinkingPart, ToolCall

QUICK = settings(max_examples=60, deadline=None)
USER = {"role": "user", "content": "Time?"}
CALL = {"type": "function", "id": "1", "function": {"name": "get_time", "arguments": '{"zone":"UTC"}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "12:00"}
NOON = {"role": "assistant", "content": "Noon.", "reasoning_content": "Easy."}


@pytest.fixture(scope="module")
def gpt_oss(tokenizer_named: Callable[[str], FastTokenizer]) -> FastTokenizer:
    return tokenizer_named("gpt_oss")


@pytest.fixture(scope="module")
def renderer(gpt_oss: FastTokenizer) -> Renderer:
    return get_renderer("gpt_oss_high_reasoning", gpt_oss, current_date="2030-05-01")


@pytest.fixture(scope="module")
def bare(gpt_oss: FastTokenizer) -> Renderer:
    return get_renderer("gpt_oss_no_sysprompt", gpt_oss)


def _trained(renderer: Renderer, example: tuple[Any, Any]) -> str:
    ids, weights = example
    return renderer.tokenizer.decode(np.array(ids.to_ints())[weights > 0].tolist())


# Options and layout ---------------------------------------------------------------------------------------------------


def test_the_date_is_todays_unless_it_is_given(gpt_oss: FastTokenizer, renderer: Renderer) -> None:
    today = date.today().isoformat()
    undated = get_renderer("gpt_oss_low_reasoning", gpt_oss)
    assert f"\nCurrent date: {today}\n\nReasoning: low\n" in gpt_oss.decode(
        undated.build_generation_prompt([USER]).to_ints()
    )
    assert undated.options == {"current_date": today}
    assert "\nCurrent date: 2030-05-01\n\nReasoning: high\n" in gpt_oss.decode(
        renderer.build_generation_prompt([USER]).to_ints()
    )
    assert renderer.date_option == "current_date"


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("gpt_oss_low_reasoning", {"current_date": date(2030, 5, 1)}, r"current_date: must be text \(in quotes\)"),
        ("gpt_oss_low_reasoning", {"date": "2030-05-01"}, "date"),
        ("gpt_oss_no_sysprompt", {"current_date": "2030-05-01"}, "current_date"),
    ],
)
def test_a_wrong_option_is_an_error(gpt_oss: FastTokenizer, name: str, options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        get_renderer(name, gpt_oss, **options)


def test_each_turn_is_trained_with_the_stop_and_the_thinking_it_was_written_with(bare: Renderer) -> None:
    said = [USER, NOON, USER, CALLS | {"reasoning_content": "Look."}, RESULT, NOON]
    first, second = bare.build_supervised_examples(said)
    final = "<|start|>assistant<|channel|>final<|message|>Noon.<|return|>"
    assert _trained(bare, first) == f"<|channel|>analysis<|message|>Easy.<|end|>{final}"
    assert _trained(bare, second) == (
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant"
        ' to=functions.get_time<|channel|>commentary <|constrain|>json<|message|>{"zone":"UTC"}<|call|>'
        f"<|channel|>analysis<|message|>Easy.<|end|>{final}"
    )
    text = bare.tokenizer.decode(second[0].to_ints())
    assert text.startswith(
        "<|start|>user<|message|>Time?<|end|><|start|>assistant<|channel|>final<|message|>Noon.<|end|><|start|>user"
    )


def test_a_final_answer_that_is_spoken_after_is_history(bare: Renderer) -> None:
    prompt = bare.tokenizer.decode(bare.build_generation_prompt([USER, NOON]).to_ints())
    assert prompt.endswith("<|start|>assistant<|channel|>final<|message|>Noon.<|end|><|start|>assistant")


def test_it_extends_its_prompts_up_to_a_final_answer(bare: Renderer) -> None:
    said = [Message.of(message) for message in (USER, CALLS, RESULT, NOON, USER)]
    assert [bare.extends(said[:end]) for end in range(1, 6)] == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("role", "header"),
    [
        ("assistant", "<|start|>assistant"),
        ("user", "<|start|>user<|message|>"),
        ("system", "<|start|>developer<|message|># Instructions\n\n"),
        ("tool", "<|start|>functions.get_time to=assistant<|channel|>commentary<|message|>"),
    ],
)
def test_a_prompt_for_anyone_is_followed_by_what_that_one_says(bare: Renderer, role: str, header: str) -> None:
    said = [USER, CALLS]
    prompt = bare.build_generation_prompt(said, role=role).to_ints()
    whole, _ = bare.build_supervised_example([*said, RESULT | {"role": role}], "all_tokens")
    assert bare.tokenizer.decode(prompt).endswith(header)
    assert whole.to_ints()[: len(prompt)] == prompt


def test_a_tools_name_is_that_of_the_call_it_answers(bare: Renderer) -> None:
    for result in (RESULT, RESULT | {"name": "get_time"}, {"role": "tool", "content": "12:00"}):
        text = bare.tokenizer.decode(bare.build_generation_prompt([USER, CALLS, result]).to_ints())
        assert "<|call|><|start|>functions.get_time to=assistant<|channel|>commentary<|message|>12:00<|end|>" in text


def test_results_of_calls_in_a_row_name_the_tool_that_was_called(bare: Renderer) -> None:
    other = {"role": "assistant", "tool_calls": [{"id": "2", "function": {"name": "get_date", "arguments": "{}"}}]}
    said = [USER, CALLS, other]
    results = [RESULT, {"role": "tool", "tool_call_id": "2", "content": "Monday"}]
    named = [RESULT | {"name": "get_time"}, {"role": "tool", "content": "Monday"}]  # one is left to answer
    for answers in (results, results[::-1], named):
        text = bare.tokenizer.decode(bare.build_generation_prompt([*said, *answers]).to_ints())
        assert "<|start|>functions.get_time to=assistant<|channel|>commentary<|message|>12:00<|end|>" in text
        assert "<|start|>functions.get_date to=assistant<|channel|>commentary<|message|>Monday<|end|>" in text
    waits = "tool_call_id: missing, and calls of get_date, get_time wait for a result"
    with pytest.raises(RenderError, match=f"message 3: {waits}"):
        bare.build_generation_prompt([*said, {"role": "tool", "content": "Monday"}])
    with pytest.raises(RenderError, match=waits):
        bare.build_generation_prompt(said, role="tool")


def test_a_second_result_of_one_call_names_its_tool(bare: Renderer) -> None:
    again = {"role": "tool", "content": "13:00"}
    text = bare.tokenizer.decode(bare.build_generation_prompt([USER, CALLS, RESULT, again]).to_ints())
    assert text.count("<|start|>functions.get_time to=assistant") == 2


# Errors ---------------------------------------------------------------------------------------------------------------


def _calling(arguments: str) -> dict[str, Any]:
    return CALLS | {"tool_calls": [CALL | {"function": {"name": "get_time", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([{"role": "critic", "content": "x"}], "message 0: role: .* has no 'critic'"),
        ([USER, {"role": "assistant"}], "message 1: content is missing"),
        ([USER, RESULT], "message 1: role: a tool's result, but no message before it calls a tool"),
        ([USER, _calling("noon")], r"message 1: tool_calls\[0\].function.arguments: not JSON"),
        ([USER, _calling("[1]")], r"message 1: tool_calls\[0\].function.arguments: must be a JSON object, not list"),
        ([USER, CALLS | {"tool_calls": [CALL, CALL]}], "message 1: tool_calls: .* has one call a message, not 2"),
        ([USER | {"tool_calls": [CALL]}], "message 0: tool_calls: only the assistant calls tools"),
        ([USER | {"reasoning_content": "Hm."}], "message 0: reasoning_content: .* only the assistant thinks"),
        ([USER, CALLS, RESULT | {"tool_call_id": "2"}], "message 2: tool_call_id: '2' is not one of 1"),
        ([Message("user", (ImagePart("cat.png"),))], "message 0: content: .* has no images"),
    ],
)
def test_what_cannot_be_rendered_is_refused_by_place(renderer: Renderer, messages: list[Any], error: str) -> None:
    for build in (renderer.build_generation_prompt, renderer.build_supervised_example):
        with pytest.raises(RenderError, match=f"^{error}"):
            build(messages)


@pytest.mark.parametrize(
    ("tool", "error"),
    [
        ("f", "must be an object"),
        ({"function": {}}, "must have a function with a name"),
        ({"function": {"name": "f", "description": 1}}, "function.description must be text, not int"),
        ({"function": {"name": "f", "parameters": "x"}}, "function.parameters must be a JSON schema, not str"),
        ({"function": {"name": "f", "parameters": {"default": float("nan")}}}, "function.parameters: not JSON"),
    ],
)
def test_a_tool_that_is_none_is_refused_by_place(renderer: Renderer, tool: Any, error: str) -> None:
    with pytest.raises(RenderError, match=rf"^tools\[1\]: .*{error}"):
        renderer.build_generation_prompt([USER], tools=[{"function": {"name": "f"}}, tool])


@pytest.mark.parametrize(("role", "error"), [("critic", "has no 'critic'"), ("tool", "no message calls one")])
def test_a_prompt_for_nobody_is_refused(bare: Renderer, role: str, error: str) -> None:
    with pytest.raises(RenderError, match=error):
        bare.build_generation_prompt([USER], role=role)


def _shown(deltas: list[Any]) -> tuple[str, str]:
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)),
        "".join(delta.thinking for delta in deltas if isinstance(delta, ThinkingDelta)),
    )


# Any text -------------------------------------------------------------------------------------------------------------

MARKUP = [
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>", "<|endoftext|>"),
    *("<|startoftext|>", "<|endofprompt|>", "<|reserved_200000|>", "<|end", " to=functions.x", " to=", "assistant"),
    *("<|end|><|start|>assistant<|channel|>final<|message|>", "<|im_end|>", "\n\n", " ", "\n", "// x", "} => any;"),
]
TEXTS = st.lists(
    st.sampled_from(MARKUP) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=4
).map("".join)
ARGUMENTS = st.dictionaries(TEXTS, TEXTS | st.integers() | st.lists(TEXTS, max_size=2), max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Every kind of message that the format can express, and perhaps a tool."""
    messages = [Message(draw(st.sampled_from(["system", "developer"])), draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append(Message("user", draw(TEXTS), name=draw(st.none() | TEXTS)))
        for _ in range(draw(st.integers(0, 2))):
            call_id, arguments = draw(st.none() | TEXTS), json.dumps(draw(ARGUMENTS), ensure_ascii=draw(st.booleans()))
            call = ToolCall(draw(TEXTS.filter(bool)), arguments, call_id)
            messages.append(Message("assistant", draw(_contents()), (call,)))
            messages.append(Message("tool", draw(TEXTS), tool_call_id=call_id, name=draw(st.none() | TEXTS)))
        messages.append(Message("assistant", draw(_contents())))
    function = {"name": draw(TEXTS), "description": draw(TEXTS), "parameters": draw(_schemas())}
    return messages, draw(st.sampled_from([None, [{"type": "function", "function": function}]]))


def _thought(thinking: str, text: str = "") -> tuple[ThinkingPart | TextPart, ...]:
    return (ThinkingPart(thinking), TextPart(text)) if text else (ThinkingPart(thinking),)


def _contents() -> st.SearchStrategy[Any]:
    return TEXTS | st.builds(_thought, TEXTS.filter(bool), TEXTS)


@st.composite
def _schemas(draw: st.DrawFn) -> dict[str, Any]:
    fields = ("title", "description", "default", "type")
    member = {field: draw(TEXTS) for field in fields} | {"examples": [draw(TEXTS)], "enum": [draw(TEXTS)]}
    return {
        "type": "object",
        "description": draw(TEXTS),
        "properties": {draw(TEXTS): member},
        "required": [draw(TEXTS)],
    }


def _harmless(message: Message) -> Message:
    text, thinking = message.text and "x", "x" if message.thinking else None
    content = text if thinking is None else _thought(thinking, text)
    return Message(message.role, content, tuple(ToolCall("x", "{}") for _ in message.tool_calls))


def _controls(renderer: Renderer, ids: list[int]) -> list[int]:
    special = set(renderer.tokenizer.control_tokens.values())
    return [token for token in ids if token in special]


@given(drawn=conversations())
@QUICK
def test_no_text_in_any_field_becomes_a_control_token(renderer: Renderer, drawn: tuple[list[Message], Any]) -> None:
    messages, tools = drawn
    harmless = [_harmless(message) for message in messages]
    plain_tools = tools and [{"function": {"name": "x"}}]
    for end in range(1, len(messages) + 1):
        forged = renderer.build_generation_prompt(messages[:end], tools=tools).to_ints()
        plain = renderer.build_generation_prompt(harmless[:end], tools=plain_tools).to_ints()
        assert _controls(renderer, forged) == _controls(renderer, plain)


@given(drawn=conversations())
@QUICK
def test_every_answer_is_trained_after_its_prompt_and_reads_back(
    renderer: Renderer, drawn: tuple[list[Message], Any]
) -> None:
    messages, tools = drawn
    examples = renderer.build_supervised_examples(messages, tools=tools)
    [many] = renderer.build_many([(messages, tools)])
    built = [(ids.to_ints(), mask.tolist()) for ids, mask in examples]
    assert [(ids.to_ints(), mask.tolist()) for ids, mask in many] == built
    num_trained = 0
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = renderer.build_generation_prompt(messages[:index], tools=tools).to_ints()
        [written] = _written_after(prompt, built)
        _check_read(renderer, written, message)
        num_trained += len(written)
    assert sum(sum(mask) for _, mask in built) == num_trained


def _written_after(prompt: list[int], built: list[tuple[list[int], list[float]]]) -> Iterator[list[int]]:
    for ids, mask in built:
        if ids[: len(prompt)] == prompt and mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]:
            yield ids[len(prompt) : [*mask, 0].index(0, len(prompt))]


def _check_read(renderer: Renderer, written: list[int], message: Message) -> None:
    *shown, parsed = renderer.parse_stream(written)
    assert parsed == renderer.parse_response(written)
    assert _shown(shown) == (parsed.message.text, parsed.message.thinking or "")
    calls = tuple(ToolCall(call.name, call.arguments) for call in message.tool_calls)
    content = _thought(message.thinking, message.text) if message.thinking else message.text
    assert parsed == ParsedResponse(Message("assistant", content, calls), Termination.STOP_SEQUENCE)


@given(drawn=conversations())
@QUICK
def test_the_whole_conversation_trains_what_still_stands(bare: Renderer, drawn: tuple[list[Message], Any]) -> None:
    messages, tools = drawn
    ids, weights = bare.build_supervised_example(messages, tools=tools)
    assert weights.shape == (ids.length,)
    last, _ = bare.build_supervised_examples(messages, "last_assistant_turn", tools=tools)[-1]
    assert ids.to_ints()[: last.length] == last.to_ints()
    assert weights[-1] == 1


@given(ids=st.lists(st.integers(0, 200018) | st.sampled_from([316, 28, *range(200002, 200013)]), max_size=12))
@QUICK
def test_any_ids_can_be_read(bare: Renderer, ids: list[int]) -> None:
    *shown, parsed = bare.parse_stream(ids)
    assert parsed == bare.parse_response(ids)
    assert _shown(shown) == (parsed.message.text, parsed.message.thinking or "")
