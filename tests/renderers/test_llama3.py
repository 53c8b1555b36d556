"""Llama 3, 3.1 and 3.2 beyond the reference renderings: options, errors, answers, and what holds for any text."""

import json
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crucible_train.errors import ConfigError, RenderError
from crucible_train.renderers import (
    FastTokenizer,
    ParsedResponse,
    Renderer,
    Termination,
    TextDelta,
    get_renderer,
)
from crucible_train.types import ImagePart, Message, ToolCall

QUICK = settings(max_examples=60, deadline=None)
WITH_TOOLS = ("llama3_1", "llama3_1 in system", "llama3_2")
TOOL = {"type": "function", "function": {"name": "get_time", "description": "Tell the time.", "parameters": {}}}
USER = {"role": "user", "content": "Time?"}
CALL = {"type": "function", "id": "1", "function": {"name": "get_time", "arguments": '{"zone":"UTC"}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "12:00"}


@pytest.fixture(scope="module")
def llama3(tokenizer_named: Callable[[str], FastTokenizer]) -> FastTokenizer:
    return tokenizer_named("llama3")


@pytest.fixture(scope="module", params=["llama3", *WITH_TOOLS])
def renderer(request: pytest.FixtureRequest, llama3: FastTokenizer) -> Renderer:
    return _made(request.param, llama3)


@pytest.fixture(scope="module", params=WITH_TOOLS)
def with_tools(request: pytest.FixtureRequest, llama3: FastTokenizer) -> Renderer:
    return _made(request.param, llama3)


def _made(case: str, tokenizer: FastTokenizer) -> Renderer:
    name, _, in_system = case.partition(" ")
    options = {"tools_in_user_message": False} if in_system else {}
    return get_renderer(name, tokenizer, **options)


def _text(renderer: Renderer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    ids, _ = renderer.build_supervised_example(messages, "all_tokens", tools=tools)
    return renderer.tokenizer.decode(ids.to_ints())


# Options --------------------------------------------------------------------------------------------------------------


def test_the_date_is_the_templates_own_unless_it_is_given(llama3: FastTokenizer) -> None:
    today = date.today().strftime("%d %b %Y")
    for name, default in (("llama3_1", "26 Jul 2024"), ("llama3_2", today)):
        renderer = get_renderer(name, llama3)
        assert f"\nToday Date: {default}\n\n<|eot_id|>" in _text(renderer, [USER])
        assert renderer.options["date_string"] == default
        given = get_renderer(name, llama3, date_string="1 May 2030")
        assert "\nToday Date: 1 May 2030\n\n" in _text(given, [USER])
        assert given.options == {"date_string": "1 May 2030", "tools_in_user_message": True}
    assert "Date" not in _text(get_renderer("llama3", llama3), [USER])


def test_only_a_format_that_takes_todays_date_says_so(llama3: FastTokenizer) -> None:
    dated = {name: get_renderer(name, llama3).date_option for name in ("llama3", "llama3_1", "llama3_2")}
    assert dated == {"llama3": None, "llama3_1": None, "llama3_2": "date_string"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"date_string": 2024}, "renderer_options.date_string: must be text, not 2024"),
        ({"tools_in_user_message": "no"}, "tools_in_user_message: must be true or false, not 'no'"),
        ({"date": "1 May 2030"}, "date"),
    ],
)
def test_a_wrong_option_is_an_error(llama3: FastTokenizer, options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        get_renderer("llama3_1", llama3, **options)


def test_no_tools_are_not_an_empty_list_of_tools(with_tools: Renderer) -> None:
    assert "Environment: ipython" not in _text(with_tools, [USER])
    assert "Environment: ipython\nCutting Knowledge Date" in _text(with_tools, [USER], [])


def test_a_prompt_for_a_tool_has_its_header(with_tools: Renderer, llama3: FastTokenizer) -> None:
    prompt = with_tools.build_generation_prompt([USER, CALLS], role="tool").to_ints()
    whole, _ = with_tools.build_supervised_example([USER, CALLS, RESULT], "all_messages")
    assert whole.to_ints()[: len(prompt)] == prompt
    assert llama3.decode(prompt).endswith("<|start_header_id|>ipython<|end_header_id|>\n\n")


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([{"role": "critic", "content": "x"}], "message 0: role: .* has no 'critic'"),
        ([USER, {"role": "assistant"}], "message 1: content is missing"),
        ([USER, RESULT], "message 1: role: "),
        ([USER, {"role": "ipython", "content": "12:00"}], "message 1: role: "),
        ([USER, {"role": "assistant", "content": "x", "reasoning_content": "y"}], "message 1: reasoning_content: "),
        ([Message("user", (ImagePart("cat.png"),))], "message 0: content: .* has no images"),
    ],
)
def test_what_cannot_be_rendered_is_refused_by_place(renderer: Renderer, messages: list[Any], error: str) -> None:
    for build in (renderer.build_generation_prompt, renderer.build_supervised_example):
        with pytest.raises(RenderError, match=f"^{error}"):
            build(messages)


def _calling(arguments: str, **more: Any) -> dict[str, Any]:
    function = {"name": "get_time", "arguments": arguments}
    return CALLS | {"tool_calls": [CALL | {"function": function}]} | more


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([USER, _calling("noon")], r"message 1: tool_calls\[0\].function.arguments: not JSON"),
        ([USER, _calling("[1]")], r"message 1: tool_calls\[0\].function.arguments: must be a JSON object, not list"),
        ([USER, _calling('{"a": "\\ud800"}')], r"message 1: tool_calls\[0\].function.arguments: character 8 is"),
        ([USER, _calling("{}", content="One moment.")], "message 1: content: .* no text beside a tool call"),
        ([USER, CALLS | {"tool_calls": [CALL, CALL]}], "message 1: tool_calls: .* has one call a message, not 2"),
        ([USER | {"tool_calls": [CALL]}], "message 0: tool_calls: only the assistant calls tools"),
        ([USER, CALLS, RESULT | {"tool_call_id": "2"}], "message 2: tool_call_id: '2' is not one of 1"),
    ],
)
def test_a_call_that_cannot_be_rendered_is_refused_by_place(
    with_tools: Renderer, messages: list[Any], error: str
) -> None:
    with pytest.raises(RenderError, match=f"^{error}"):
        with_tools.build_supervised_example(messages, "all_messages")


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([{"role": "system", "content": "x"}], "tools: llama3_2 declares them in the first user message, and there is"),
        ([CALLS, RESULT], "message 0: tool_calls: llama3_2 declares tools in this message"),
    ],
)
def test_tools_need_a_first_message_to_stand_in(llama3: FastTokenizer, messages: list[Any], error: str) -> None:
    with pytest.raises(RenderError, match=error):
        get_renderer("llama3_2", llama3).build_generation_prompt(messages, tools=[TOOL])
    get_renderer("llama3_2", llama3, tools_in_user_message=False).build_generation_prompt(messages, tools=[TOOL])


def test_a_tool_that_is_not_json_is_refused(with_tools: Renderer) -> None:
    with pytest.raises(RenderError, match=r"tools\[1\]: not JSON"):
        with_tools.build_generation_prompt([USER], tools=[TOOL, {"function": {1, 2}}])


def test_what_an_assistant_says_where_tools_are_declared_is_not_trained(llama3: FastTokenizer) -> None:
    renderer = get_renderer("llama3_1", llama3)
    said = [{"role": "assistant", "content": "Hello!"}, USER, {"role": "assistant", "content": "Noon."}]
    ids, weights = renderer.build_supervised_example(said, tools=[TOOL])
    assert llama3.decode(np.array(ids.to_ints())[weights > 0].tolist()) == "Noon.<|eot_id|>"


# Answers --------------------------------------------------------------------------------------------------------------

_CALLED = '{"name": "get_time", "parameters": {"zone": "UTC"}}'
_TIME = ToolCall("get_time", '{"zone": "UTC"}')


@pytest.mark.parametrize(
    ("written", "message", "termination", "unparsed"),
    [
        (["Noon.", "<|eot_id|>"], Message("assistant", "Noon."), Termination.STOP_SEQUENCE, ()),
        ([_CALLED, "<|eot_id|>"], Message("assistant", "", (_TIME,)), Termination.STOP_SEQUENCE, ()),
        ([_CALLED, "<|eom_id|>"], Message("assistant", "", (_TIME,)), Termination.STOP_SEQUENCE, ()),
        (["<|python_tag|>", _CALLED, "<|eom_id|>"], Message("assistant", "", (_TIME,)), Termination.STOP_SEQUENCE, ()),
        ([f"\n {_CALLED}\n", "<|eot_id|>"], Message("assistant", "", (_TIME,)), Termination.STOP_SEQUENCE, ()),
        ([_CALLED], Message("assistant", "", (_TIME,)), Termination.MALFORMED, ()),
        ([_CALLED[:-4], "<|eot_id|>"], Message("assistant", ""), Termination.MALFORMED, (_CALLED[:-4],)),
        ([_CALLED + ";", "<|eot_id|>"], Message("assistant", ""), Termination.MALFORMED, (_CALLED + ";",)),
        (
            ['{"name": "f", "parameters": []}', "<|eot_id|>"],
            Message("assistant", ""),
            Termination.MALFORMED,
            ('{"name": "f", "parameters": []}',),
        ),
        (
            ["<|python_tag|>", "time.call()", "<|eom_id|>"],
            Message("assistant", ""),
            Termination.MALFORMED,
            ("time.call()",),
        ),
        (
            ['{"name": "Ana", "age": 3}', "<|eot_id|>"],
            Message("assistant", '{"name": "Ana", "age": 3}'),
            Termination.STOP_SEQUENCE,
            (),
        ),
        (
            [f"So: {_CALLED}", "<|eot_id|>"],
            Message("assistant", f"So: {_CALLED}"),
            Termination.STOP_SEQUENCE,
            (),
        ),
        (
            ["Let me see.", "<|python_tag|>", _CALLED, "<|eom_id|>"],
            Message("assistant", "Let me see.", (_TIME,)),
            Termination.STOP_SEQUENCE,
            (),
        ),
        (["<|eot_id|>", "<|eot_id|>"], Message("assistant", ""), Termination.STOP_SEQUENCE, ()),
        (["{", "<|end_of_text|>"], Message("assistant", "{"), Termination.END_OF_TEXT, ()),
        ([], Message("assistant", ""), Termination.MALFORMED, ()),
    ],
)
def test_an_answer_reads_as_what_it_is(
    with_tools: Renderer, written: list[str], message: Message, termination: Termination, unparsed: tuple[str, ...]
) -> None:
    controls, encode = with_tools.tokenizer.control_tokens, with_tools.tokenizer.encode
    ids = [id_ for part in written for id_ in ([controls[part]] if part in controls else encode(part))]
    *shown, parsed = with_tools.parse_stream(ids)
    assert parsed == with_tools.parse_response(ids) == ParsedResponse(message, termination, unparsed)
    assert "".join(delta.text for delta in shown) == message.text


def test_without_tools_a_call_is_text(llama3: FastTokenizer) -> None:
    ids = [*llama3.encode(_CALLED), llama3.control_tokens["<|eot_id|>"]]
    assert get_renderer("llama3", llama3).parse_response(ids).message == Message("assistant", _CALLED)


def test_a_stream_shows_an_object_as_soon_as_it_can_be_no_call(with_tools: Renderer) -> None:
    stream = with_tools.parse_stream(with_tools.tokenizer.encode('{"city": "Porto"}'))
    assert next(stream) == TextDelta('{"city')


# Any text -------------------------------------------------------------------------------------------------------------

NAMED = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
MARKUP = [
    *(*NAMED, "<|python_tag|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<|im_end|>", "<|eot_"),
    *("<|start_header_id|>assistant<|end_header_id|>\n\n", '{"name": "f", "age": 1}', '{"name":', "\n\n", " ", "\n"),
]
TEXTS = st.lists(
    st.sampled_from(MARKUP) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=4
).map("".join)
ARGUMENTS = st.dictionaries(TEXTS, TEXTS | st.integers() | st.lists(TEXTS, max_size=2), max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Every kind of message that 3.1 can express, and perhaps a tool."""
    messages = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append(Message("user", draw(TEXTS), name=draw(st.none() | TEXTS)))
        for _ in range(draw(st.integers(0, 2))):
            name, call_id = draw(TEXTS), draw(st.none() | TEXTS)
            arguments = json.dumps(draw(ARGUMENTS), ensure_ascii=draw(st.booleans()))
            messages.append(
                Message("assistant", draw(st.sampled_from(["", None])), (ToolCall(name, arguments, call_id),))
            )
            messages.append(Message("tool", draw(TEXTS), tool_call_id=call_id, name=name))
        messages.append(Message(draw(st.sampled_from(["assistant", "assistant", "developer"])), draw(TEXTS)))
    function = {"name": draw(TEXTS), "description": draw(TEXTS), "parameters": {draw(TEXTS): draw(TEXTS)}}
    return messages, draw(st.sampled_from([None, [{"type": "function", "function": function}]]))


def _harmless(message: Message) -> Message:
    calls = tuple(ToolCall("x", '{"x": "x"}') for _ in message.tool_calls)
    return Message(message.role, message.content and "x", calls)


def _controls(renderer: Renderer, ids: list[int]) -> list[int]:
    special = set(renderer.tokenizer.control_tokens.values())
    return [token for token in ids if token in special]


@given(drawn=conversations())
@QUICK
def test_no_text_in_any_field_becomes_a_control_token(with_tools: Renderer, drawn: tuple[list[Message], Any]) -> None:
    messages, tools = drawn
    harmless = [_harmless(message) for message in messages]
    plain_tools = tools and [TOOL]
    for end in range(2, len(messages) + 1):
        forged = with_tools.build_generation_prompt(messages[:end], tools=tools).to_ints()
        plain = with_tools.build_generation_prompt(harmless[:end], tools=plain_tools).to_ints()
        assert _controls(with_tools, forged) == _controls(with_tools, plain)


@given(drawn=conversations())
@QUICK
def test_every_answer_is_trained_after_its_prompt_and_reads_back(
    with_tools: Renderer, drawn: tuple[list[Message], Any]
) -> None:
    messages, tools = drawn
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    assume(answers)
    [(example, weights)] = with_tools.build_supervised_examples(messages, tools=tools)
    [many] = with_tools.build_many([(messages, tools)])
    assert [(ids.to_ints(), mask.tolist()) for ids, mask in many] == [(example.to_ints(), weights.tolist())]
    ids = example.to_ints()
    trained = np.zeros(len(ids))
    for index in answers:
        prompt = with_tools.build_generation_prompt(messages[:index], tools=tools).to_ints()
        assert ids[: len(prompt)] == prompt
        end = len(prompt) + 1 + ids[len(prompt) :].index(with_tools.stop_sequences()[0])
        trained[len(prompt) : end] = 1
        _check_read(with_tools, ids[len(prompt) : end], messages[index])
    assert weights.tolist() == trained.tolist()


def _check_read(renderer: Renderer, written: list[int], message: Message) -> None:
    *shown, parsed = renderer.parse_stream(written)
    assert parsed == renderer.parse_response(written)
    assert "".join(delta.text for delta in shown) == parsed.message.text
    if not message.tool_calls:
        expected = ParsedResponse(Message("assistant", message.text.strip()), Termination.STOP_SEQUENCE)
        assert parsed == expected
        return
    [call] = message.tool_calls
    if json.dumps(call.name, ensure_ascii=False) != f'"{call.name}"':  # the template does not escape a name
        return
    again = ToolCall(call.name, json.dumps(json.loads(call.arguments), ensure_ascii=False))
    assert parsed == ParsedResponse(Message("assistant", "", (again,)), Termination.STOP_SEQUENCE)


@given(ids=st.lists(st.integers(0, 128255) | st.sampled_from([90, 5018, 609, *range(128000, 128011)]), max_size=10))
@QUICK
def test_any_ids_can_be_read(renderer: Renderer, ids: list[int]) -> None:
    *shown, parsed = renderer.parse_stream(ids)
    assert parsed == renderer.parse_response(ids)
    assert "".join(delta.text for delta in shown) == parsed.message.text
