"""Qwen3 in all its forms, with pictures and without: what it promises of any text, and what it reads and refuses."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crucible_train.errors import RenderError
from crucible_train.renderers import FastTokenizer, ParsedResponse, Renderer, Termination, get_renderer
from crucible_train.renderers.answers import TextDelta, ThinkingDelta
from crucible_train.renderers.jinja import compile_template
from crucible_train.types import Message, TextPart, ThinkingPart, ToolCall

QUICK = settings(max_examples=25, deadline=None)
LAST = "last_assistant_message"
KEPT = {"strip_thinking_from_history": False}
THINKING: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {}),
    ("qwen3", KEPT),
    ("qwen3_vl", {}),
    ("qwen3_vl", KEPT),
]
ALL = [
    *THINKING,
    ("qwen3_disable_thinking", {}),
    ("qwen3_disable_thinking", KEPT),
    ("qwen3_instruct", {}),
    ("qwen3_vl_instruct", {}),
]
MARKERS = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"),
    *("<|object_ref_start|>", "<|box_end|>", "<|quad_start|>", "<|fim_prefix|>", "<|repo_name|>", "<|file_sep|>"),
    *("<|begin_of_text|>", "<|eot_id|>", "<｜User｜>", "<|channel|>", "[INST]", "</s>"),
    *("\n", "\n\n", " ", '"', "\\", "}\n", '{"name": "f", "arguments": {}}', "<|im_", "end|>", "🙂", "e\u0301", "\x00"),
]
TEXTS = st.lists(
    st.sampled_from(MARKERS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=4
).map("".join)
WORDS = TEXTS.filter(bool)
TOOL = {"type": "function", "function": {"name": "f", "description": "Do it.", "parameters": {}}}


def idfn(variant: tuple[str, dict[str, Any]]) -> str:
    name, options = variant
    return f"{name}-kept" if options else name


@pytest.fixture(scope="module", params=ALL, ids=idfn)
def renderer(request: pytest.FixtureRequest, qwen3: FastTokenizer) -> Renderer:
    name, options = request.param
    return get_renderer(name, qwen3, **options)


@pytest.fixture(scope="module", params=THINKING, ids=idfn)
def thinking(request: pytest.FixtureRequest, qwen3: FastTokenizer) -> Renderer:
    name, options = request.param
    return get_renderer(name, qwen3, **options)


@pytest.fixture
def named(qwen3: FastTokenizer) -> Callable[..., Renderer]:
    return lambda name, **options: get_renderer(name, qwen3, **options)


def _thinks(renderer: Renderer) -> bool:
    return renderer.name in {"qwen3", "qwen3_vl"}


def _strips_newlines(renderer: Renderer) -> bool:
    return _thinks(renderer) or renderer.name == "qwen3_disable_thinking"


@st.composite
def calls(draw: st.DrawFn) -> ToolCall:
    arguments = draw(st.dictionaries(TEXTS, TEXTS | st.integers() | st.lists(TEXTS, max_size=2), max_size=2))
    layout: dict[str, Any] = draw(
        st.sampled_from([{"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 1, "ensure_ascii": False}])
    )
    return ToolCall(draw(WORDS), json.dumps(arguments, **layout))


@st.composite
def answers(draw: st.DrawFn, renderer: Renderer, *, has_calls: bool) -> Message:
    """An answer that the format can express as it is."""
    text, thought = draw(TEXTS), draw(TEXTS | st.none()) if _thinks(renderer) else None
    if _strips_newlines(renderer):
        text = text.lstrip("\n")
        assume(not text.lstrip().startswith("<think>"))
    parts = (ThinkingPart(thought.strip("\n")), TextPart(text)) if thought and thought.strip("\n") else ()
    return Message("assistant", parts or text, tuple(draw(st.lists(calls(), min_size=1, max_size=2))) * has_calls)


@st.composite
def conversations(draw: st.DrawFn, renderer: Renderer) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Turns with steps in which tools are called; everything that can be said is drawn from ``TEXTS``."""
    messages = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(TEXTS)))
        for _ in range(draw(st.integers(0, 2))):
            messages.append(draw(answers(renderer, has_calls=True)))
            messages += [Message("tool", draw(TEXTS), name=draw(WORDS)) for _ in range(draw(st.integers(1, 2)))]
        messages.append(draw(answers(renderer, has_calls=False)))
    tools = [TOOL | {draw(TEXTS): draw(TEXTS)}] if draw(st.booleans()) else None
    return messages, tools


def _harmless(message: Message) -> Message:
    content = message.content
    if isinstance(content, tuple):
        content = tuple(ThinkingPart("x") if isinstance(part, ThinkingPart) else TextPart("x") for part in content)
    else:
        content = "x"
    return replace(
        message, content=content, tool_calls=tuple(ToolCall("x", "{}") for _ in message.tool_calls), name="x"
    )


def _controls(renderer: Renderer, ids: list[int]) -> list[int]:
    special = set(renderer.tokenizer.control_tokens.values())
    return [token for token in ids if token in special]


def _as_written(renderer: Renderer, message: Message) -> Message:
    """The message as it is read back: normalised by the tokenizer, and no empty text beside a thought."""

    def written(text: str) -> str:
        return renderer.tokenizer.decode(renderer.tokenizer.encode(text))

    text, thought = written(message.text), written(message.thinking or "")
    parts = (ThinkingPart(thought), TextPart(text)) if text else (ThinkingPart(thought),)
    named = tuple(ToolCall(written(call.name), written(call.arguments)) for call in message.tool_calls)
    return Message("assistant", parts if thought else text, named)


def _written_after(prompt: list[int], examples: Any) -> Iterator[list[int]]:
    """What is trained right after a prompt."""
    for ids, weights in examples:
        if ids.to_ints()[: len(prompt)] == prompt and weights[len(prompt)]:
            end = len(prompt) + int(np.append(weights[len(prompt) :], 0).argmin())
            yield ids.to_ints()[len(prompt) : end]


@given(data=st.data())
@QUICK
def test_no_text_anywhere_becomes_a_control_token(renderer: Renderer, data: st.DataObject) -> None:
    messages, tools = data.draw(conversations(renderer))
    plain = [_harmless(message) for message in messages]
    for build in (
        lambda said, tools: renderer.build_supervised_example(said, "all_tokens", tools=tools)[0].to_ints(),
        lambda said, tools: renderer.build_generation_prompt(said[:-1], tools=tools).to_ints(),
        lambda said, tools: renderer.build_supervised_examples(said, LAST, tools=tools)[0][0].to_ints(),
    ):
        assert _controls(renderer, build(messages, tools)) == _controls(renderer, build(plain, tools and [TOOL]))


@given(data=st.data())
@QUICK
def test_every_answer_is_trained_after_its_own_prompt_and_reads_back(renderer: Renderer, data: st.DataObject) -> None:
    messages, tools = data.draw(conversations(renderer))
    examples = renderer.build_supervised_examples(messages, tools=tools)
    num_trained = 0
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = renderer.build_generation_prompt(messages[:index], tools=tools).to_ints()
        [written] = _written_after(prompt, examples)
        parsed = renderer.parse_response(written)
        assert parsed == ParsedResponse(_as_written(renderer, message), Termination.STOP_SEQUENCE)
        *shown, streamed = renderer.parse_stream(written)
        assert streamed == parsed
        assert "".join(delta.text for delta in shown if isinstance(delta, TextDelta)) == parsed.message.text
        thoughts = [delta.thinking for delta in shown if isinstance(delta, ThinkingDelta)]
        assert "".join(thoughts) == (parsed.message.thinking or "")
        num_trained += len(written)
    assert sum(int(weights.sum()) for _, weights in examples) == num_trained
    assert all(ids.length == weights.size for ids, weights in examples)
    [together] = renderer.build_many([(messages, tools)])
    assert not isinstance(together, RenderError)
    for (ids, weights), (same_ids, same_weights) in zip(examples, together, strict=True):
        assert ids == same_ids
        assert np.array_equal(weights, same_weights)


@given(data=st.data())
@QUICK
def test_where_history_is_kept_every_prompt_begins_with_what_was_written(
    thinking: Renderer, data: st.DataObject
) -> None:
    messages, tools = data.draw(conversations(thinking))
    whole = thinking.build_supervised_example(messages, tools=tools)[0].to_ints()
    extends = thinking.extends(messages)
    assert extends or thinking.options["strip_thinking_from_history"]
    for index, message in enumerate(messages):
        if message.role == "assistant" and extends:
            prompt = thinking.build_generation_prompt(messages[:index], tools=tools).to_ints()
            assert whole[: len(prompt)] == prompt


PLAIN = st.lists(
    st.sampled_from(["a", " ", "\n", "\n\n", "\t", "日本", "e\u0301", "👩‍🚀", "1234", "{{ x }}"]), max_size=4
)
PLAIN_TEXTS = PLAIN.map("".join)


@st.composite
def plain_messages(draw: st.DrawFn) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": draw(st.sampled_from(["user", "assistant", "assistant", "tool", "system"])),
        "content": draw(PLAIN_TEXTS),
    }
    if message["role"] == "assistant":
        if draw(st.booleans()):
            message["reasoning_content"] = draw(PLAIN_TEXTS)
        elif draw(st.booleans()):
            message["content"] = f"{draw(PLAIN_TEXTS)}<think>{draw(PLAIN_TEXTS)}</think>{message['content']}".lstrip()
            assume(message["content"].startswith("<think>"))
        names = draw(st.lists(st.sampled_from(["f", "get_日"]), max_size=2))
        arguments = json.dumps({draw(PLAIN_TEXTS): [draw(PLAIN_TEXTS)]}, ensure_ascii=draw(st.booleans()))
        message["tool_calls"] = [{"function": {"name": name, "arguments": arguments}} for name in names]
    return message


@pytest.fixture(scope="module")
def template(qwen3: FastTokenizer) -> Callable[..., str]:
    assert qwen3.chat_template is not None
    return compile_template(qwen3.chat_template, None)


@st.composite
def expressible(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Messages whose results follow calls, with a user's message for reasoning to stand after."""
    messages = draw(st.lists(plain_messages(), min_size=1, max_size=6))
    call = next((index for index, message in enumerate(messages) if message.get("tool_calls")), len(messages))
    messages = [message for index, message in enumerate(messages) if message["role"] != "tool" or index > call]
    if not any(message["role"] == "user" for message in messages):
        messages.insert(draw(st.integers(0, len(messages))), {"role": "user", "content": draw(PLAIN_TEXTS)})
    return messages


@pytest.mark.parametrize("name", ["qwen3", "qwen3_disable_thinking"])
@given(messages=expressible(), tools=st.sampled_from([None, [TOOL]]))
@settings(max_examples=60, deadline=None)
def test_the_ids_are_those_of_the_published_template(
    name: str,
    qwen3: FastTokenizer,
    template: Callable[..., str],
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
) -> None:
    renderer = get_renderer(name, qwen3)
    given_ = {"messages": messages, "tools": tools, "enable_thinking": name == "qwen3"}
    whole = renderer.build_supervised_example(messages, "all_tokens", tools=tools)[0].to_ints()
    prompt = renderer.build_generation_prompt(messages, tools=tools).to_ints()
    for ids, is_prompt in ((whole, False), (prompt, True)):
        text = template(add_generation_prompt=is_prompt, **given_)
        assert ids == qwen3._decoder.encode(text, add_special_tokens=False).ids


USER, CALLING = (
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
)


def _said(content: Any = "Yes.", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | fields


def _calling(arguments: str) -> dict[str, Any]:
    return _said("", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "developer", "content": "x"}, USER], r"^message 0: role: .* has no 'developer'"),
        ([USER, _calling("{")], r"^message 1: tool_calls\[0\].function.arguments: not JSON"),
        ([USER, _calling("[1]")], r"^message 1: tool_calls\[0\].function.arguments: must be a JSON object, not list"),
        (
            [USER, {"role": "tool", "content": "x"}],
            r"^message 1: role: a tool's result, but no message before it calls",
        ),
        (
            [USER, CALLING, {"role": "tool", "content": "x", "tool_call_id": "2"}],
            r"^message 2: tool_call_id: '2' is not",
        ),
        ([USER, USER | {"tool_calls": CALLING["tool_calls"]}], r"^message 1: tool_calls: only the assistant"),
        ([USER | {"reasoning_content": "Hm."}], r"^message 0: reasoning_content: "),
        ([USER, _said([{"type": "image"}])], r"^message 1: content: .* has no images"),
        ([USER, _said([{"type": "video", "video": "x"}])], r"^message 1: content\[0\] has unknown type 'video'"),
        ([USER, {"role": "assistant"}], "^message 1: content is missing"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_place(
    renderer: Renderer, messages: list[dict[str, Any]], expected: str
) -> None:
    for build in (renderer.build_generation_prompt, renderer.build_supervised_examples):
        with pytest.raises(RenderError, match=expected):
            build(messages)


@pytest.mark.parametrize(
    ("name", "options", "messages"),
    [
        ("qwen3_instruct", {}, [USER, _said(reasoning_content="Hm.")]),
        ("qwen3_vl_instruct", {}, [USER, CALLING | {"reasoning_content": "Hm."}]),
        ("qwen3_disable_thinking", KEPT, [USER, _said(reasoning_content="Hm."), USER]),
        ("qwen3_disable_thinking", KEPT, [USER, _said("<think>\nHm.\n</think>\n\nYes.")]),
        ("qwen3", {}, [_said(), _said(reasoning_content="Hm.")]),
        ("qwen3_vl", {}, [_said(), _said("<think>Hm.</think>Yes.")]),
    ],
)
def test_reasoning_that_would_be_lost_is_refused(
    named: Callable[..., Renderer], name: str, options: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    with pytest.raises(RenderError, match=r"^message 1: reasoning_content: "):
        named(name, **options).build_supervised_example(messages)


def test_earlier_reasoning_is_left_out_by_instruct_as_by_its_template(named: Callable[..., Renderer]) -> None:
    renderer = named("qwen3_instruct")
    silent = renderer.build_supervised_example([USER, _said(), USER, _said()])
    told = renderer.build_supervised_example([USER, _said(reasoning_content="Hm."), USER, _said()])
    assert told[0] == silent[0]
    assert np.array_equal(told[1], silent[1])


@pytest.mark.parametrize("tools", [["f"], [{"name": {1, 2}}], [TOOL, 1]])
def test_a_declaration_that_is_no_json_object_is_refused(renderer: Renderer, tools: list[Any]) -> None:
    with pytest.raises(RenderError, match=rf"^tools\[{len(tools) - 1}\]: "):
        renderer.build_generation_prompt([USER], tools=tools)


def test_earlier_reasoning_stays_only_where_it_is_asked_for(named: Callable[..., Renderer]) -> None:
    said = [USER, _said(reasoning_content="Hm."), USER]
    for name in ("qwen3", "qwen3_vl"):
        stripped, kept = (named(name, **options) for options in ({}, KEPT))
        texts = [one.tokenizer.decode(one.build_generation_prompt(said).to_ints()) for one in (stripped, kept)]
        assert ["Hm." in text for text in texts] == [False, True]
        assert (stripped.extends_history, kept.extends_history) == (False, True)
        [_] = kept.build_supervised_examples([*said, _said()])
        assert len(stripped.build_supervised_examples([*said, _said()])) == 2


def test_with_thinking_off_an_answer_is_trained_after_the_empty_block(named: Callable[..., Renderer]) -> None:
    renderer = named("qwen3_disable_thinking")
    prompt = renderer.build_generation_prompt([USER]).to_ints()
    [(ids, weights)] = renderer.build_supervised_examples([USER, _said(reasoning_content="Hm.")])
    assert renderer.tokenizer.decode(prompt).endswith("<think>\n\n</think>\n\n")
    assert ids.to_ints()[: len(prompt)] == prompt
    trained = np.array(ids.to_ints())[weights > 0].tolist()
    assert renderer.tokenizer.decode(trained) == "Yes.<|im_end|>"


@pytest.mark.parametrize("role", ["tool", "developer", "<|im_end|>"])
def test_only_speakers_are_prompted(renderer: Renderer, role: str) -> None:
    assert renderer.tokenizer.decode(renderer.build_generation_prompt([USER], role="user").to_ints()).endswith("user\n")
    with pytest.raises(RenderError, match=r"^role: .* can prompt assistant, user, system, not "):
        renderer.build_generation_prompt([USER], role=role)
