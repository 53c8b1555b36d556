"""DeepSeek-V3, R1 and V3.1: what they promise of any text, and what they read and refuse."""

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
from crucible_train.renderers.jinja import compile_template
from crucible_train.types import Message, TextPart, ThinkingPart, ToolCall

QUICK = settings(max_examples=30, deadline=None)
TOKENIZERS = {
    "deepseekv3": "deepseek_v3",
    "deepseek_r1": "deepseek_v3_1",
    "deepseekv3_1": "deepseek_v3_1",
    "deepseekv3_1_thinking": "deepseek_v3_1",
}
THINKING = {"deepseek_r1", "deepseekv3_1_thinking"}
MARKERS = [
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>"),
    *("<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"),
    *("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜fim▁hole｜>", "<｜search▁begin｜>", "<|im_end|>"),
    *("\n", "\n\n", " ", "```", "\n```json\n", "\n```", "function", '{"a": 1}', "<｜", "｜>", "🙂", "e\u0301", "\x00"),
]
ORDINARY = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
TEXTS = st.lists(st.sampled_from(MARKERS) | ORDINARY, max_size=4).map("".join)
USER, TOOL = Message("user", "Weather?"), Message("tool", "18 °C", tool_call_id="1")


@pytest.fixture(scope="module", params=TOKENIZERS)
def renderer(request: pytest.FixtureRequest, tokenizer_named: Callable[[str], FastTokenizer]) -> Renderer:
    return get_renderer(request.param, tokenizer_named(TOKENIZERS[request.param]))


@pytest.fixture(scope="module")
def named(tokenizer_named: Callable[[str], FastTokenizer]) -> Callable[[str], Renderer]:
    return lambda name: get_renderer(name, tokenizer_named(TOKENIZERS[name]))


@st.composite
def calls(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> ToolCall:
    arguments = draw(st.dictionaries(texts, texts | st.integers() | st.lists(texts, max_size=2), max_size=2))
    layout: dict[str, Any] = draw(
        st.sampled_from([{"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 1, "ensure_ascii": False}])
    )
    return ToolCall(draw(texts.filter(bool)), json.dumps(arguments, **layout))


@st.composite
def conversations(draw: st.DrawFn, name: str, texts: st.SearchStrategy[str] = TEXTS) -> list[Message]:
    """Turns with steps in which tools are called, and with system messages anywhere before a user's."""
    said = texts.filter(lambda text: not text.startswith("<think>"))  # such a block would be cut out
    messages: list[Message] = []
    has_called = False
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("system", draw(texts)) for _ in range(draw(st.integers(0, 3)) // 2)]
        messages.append(Message("user", draw(texts)))
        for _ in range(draw(st.integers(0, 3)) // 2):
            with_text = name.startswith("deepseekv3_1") or (name == "deepseek_r1" and not has_called)
            text = draw(said if with_text else st.just("") | st.none())
            found = draw(st.lists(calls(texts), min_size=1, max_size=3))
            messages.append(Message("assistant", text, tuple(found)))
            messages += [Message("tool", draw(texts)) for _ in range(draw(st.integers(1, 2)))]
            has_called = True
        text = draw(said)
        thought = draw(st.none() | texts) if name in THINKING and messages[-1].role == "user" else None
        parts = (ThinkingPart(thought), TextPart(text)) if text else (ThinkingPart(thought or ""),)
        messages.append(Message("assistant", parts if thought else text))
    return messages


def _without_reasoning(messages: Sequence[Message]) -> list[Message]:
    return [replace(message, content=message.text) if message.thinking else message for message in messages]


def _harmless(message: Message) -> Message:
    content: Any = "x" if message.text else message.content
    if message.thinking:
        content = (ThinkingPart("x"), TextPart("x" if message.text else ""))
    return Message(message.role, content, tuple(ToolCall("f", '{"a": 1}') for _ in message.tool_calls))


def _answers(messages: Sequence[Message]) -> Iterator[int]:
    return (index for index, message in enumerate(messages) if message.role == "assistant")


def _written(renderer: Renderer, messages: Sequence[Message], index: int) -> list[int]:
    """What is trained of an answer after its prompt, in the one example that trains it there."""
    prompt = renderer.build_generation_prompt(messages[:index]).to_ints()
    found = [
        np.array(ids.to_ints())[len(prompt) :][: int(np.append(weights[len(prompt) :], 0).argmin())].tolist()
        for ids, weights in renderer.build_supervised_examples(messages)
        if ids.to_ints()[: len(prompt)] == prompt and not weights[len(prompt) - 1] and weights[len(prompt)]
    ]
    assert len(found) == 1
    return list(found[0])


def _controls(renderer: Renderer, ids: Sequence[int]) -> list[int]:
    special = set(renderer.tokenizer.control_tokens.values())
    return [token for token in ids if token in special]


@given(data=st.data())
@QUICK
def test_no_text_becomes_a_control_token(renderer: Renderer, data: st.DataObject) -> None:
    messages = data.draw(conversations(renderer.name))
    harmless = [_harmless(message) for message in messages]
    forged, plain = renderer.build_supervised_examples(messages), renderer.build_supervised_examples(harmless)
    assert [_controls(renderer, ids.to_ints()) for ids, _ in forged] == [
        _controls(renderer, ids.to_ints()) for ids, _ in plain
    ]
    whole, plain_whole = (
        renderer.build_supervised_example(_without_reasoning(said), "all_tokens")[0] for said in (messages, harmless)
    )
    assert _controls(renderer, whole.to_ints()) == _controls(renderer, plain_whole.to_ints())
    for index in _answers(messages):
        prompt, plain_prompt = (renderer.build_generation_prompt(said[:index]) for said in (messages, harmless))
        assert _controls(renderer, prompt.to_ints()) == _controls(renderer, plain_prompt.to_ints())


@given(data=st.data())
@QUICK
def test_every_answer_is_trained_after_its_prompt_and_reads_back(renderer: Renderer, data: st.DataObject) -> None:
    messages = data.draw(conversations(renderer.name))
    num_trained = 0
    for index in _answers(messages):
        written = _written(renderer, messages, index)
        said = messages[index]
        expected = replace(said, content=said.content or "")
        parsed = renderer.parse_response(written, messages[:index])
        assert parsed == ParsedResponse(expected, Termination.STOP_SEQUENCE)
        *shown, streamed = renderer.parse_stream([*written, 5], messages[:index])
        assert streamed == parsed
        assert "".join(delta.text for delta in shown if isinstance(delta, TextDelta)) == said.text
        assert "".join(delta.thinking for delta in shown if isinstance(delta, ThinkingDelta)) == (said.thinking or "")
        num_trained += len(written)
    assert sum(int(weights.sum()) for _, weights in renderer.build_supervised_examples(messages)) == num_trained


@given(data=st.data())
@QUICK
def test_many_are_built_as_one_and_what_extends_says_so(renderer: Renderer, data: st.DataObject) -> None:
    dialogues = [data.draw(conversations(renderer.name)) for _ in range(2)]
    many = renderer.build_many([(messages, None) for messages in dialogues])
    for messages, built in zip(dialogues, many, strict=True):
        assert not isinstance(built, RenderError)
        for (ids, weights), (other, others) in zip(built, renderer.build_supervised_examples(messages), strict=True):
            assert ids == other
            assert weights.tolist() == others.tolist()
            assert weights.shape == (ids.length,)
        whole = renderer.build_supervised_example(_without_reasoning(messages), "all_tokens")[0].to_ints()
        for index in _answers(messages) if renderer.extends(messages) else ():
            prompt = renderer.build_generation_prompt(messages[:index]).to_ints()
            assert whole[: len(prompt)] == prompt


@given(messages=conversations("deepseekv3", ORDINARY))
@QUICK
def test_v3_is_its_published_template(messages: list[Message], named: Callable[[str], Renderer]) -> None:
    renderer = named("deepseekv3")
    assert isinstance(renderer.tokenizer, FastTokenizer)
    template = compile_template(renderer.tokenizer.config["chat_template"], None)
    # the template takes calls for calls only beside null
    told = [(replace(message, content=None) if message.tool_calls else message).to_dict() for message in messages]
    for end in range(1, len(told) + 1):
        shown = template(messages=told[:end], add_generation_prompt=True, bos_token="<｜begin▁of▁sentence｜>")
        assert renderer.build_generation_prompt(messages[:end]).to_ints() == _ids(renderer, shown)
    whole = template(messages=told, bos_token="<｜begin▁of▁sentence｜>")
    assert renderer.build_supervised_example(messages, "all_tokens")[0].to_ints() == _ids(renderer, whole)


@given(data=st.data())
@QUICK
def test_any_ids_can_be_read(renderer: Renderer, data: st.DataObject) -> None:
    controls = st.sampled_from(sorted(renderer.tokenizer.control_tokens.values()))
    ids = data.draw(st.lists(st.integers(0, 127999) | controls, max_size=14))
    parsed = renderer.parse_response(ids)
    *shown, streamed = renderer.parse_stream(ids)
    assert streamed == parsed
    assert "".join(delta.text for delta in shown if isinstance(delta, TextDelta)) == parsed.message.text
    thought = "".join(delta.thinking for delta in shown if isinstance(delta, ThinkingDelta))
    assert thought == (parsed.message.thinking or "")


def _ids(renderer: Renderer, written: str) -> list[int]:
    """Ids of a text in which the names of control tokens mean those tokens."""
    tokenizer = renderer.tokenizer
    assert isinstance(tokenizer, FastTokenizer)
    ids: list[int] = []
    while written:
        places = [(place, name) for name in tokenizer.control_tokens if (place := written.find(name)) >= 0]
        place, name = min(places, default=(len(written), ""))
        ids += [*tokenizer.encode(written[:place]), *([tokenizer.control_tokens[name]] if name else [])]
        written = written[place + len(name) :]
    return ids


END = "<｜end▁of▁sentence｜>"
SECTION, CALL, SEP, CALLED = (
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
)


@pytest.mark.parametrize(
    ("name", "written", "thought", "text", "called", "unparsed", "termination"),
    [
        ("deepseekv3", f"Hi{END}{END}", "", "Hi", [], [], "stop_sequence"),
        ("deepseekv3", "Hi", "", "Hi", [], [], "malformed"),
        ("deepseek_r1", f"Why\n</think>\n\nHi{END}", "Why", "Hi", [], [], "stop_sequence"),
        ("deepseek_r1", f"<think>\nWhy</think>Hi{END}", "\nWhy", "Hi", [], [], "stop_sequence"),
        ("deepseek_r1", f"Why\n\n</think>\n\n\nHi{END}", "Why\n", "\nHi", [], [], "stop_sequence"),
        ("deepseek_r1", f"Why\n</think>\nHi\n{END}", "Why", "Hi\n", [], [], "stop_sequence"),
        ("deepseek_r1", "Why do", "Why do", "", [], [], "malformed"),
        ("deepseekv3_1_thinking", f"\nWhy\n</think>\n\nHi{END}", "\nWhy\n", "\n\nHi", [], [], "stop_sequence"),
        (
            *("deepseekv3", f"{SECTION}{CALL}function{SEP}f\n```json\n{{}}\n```{CALLED}{END}"),
            *("", "", [("f", "{}")], [], "stop_sequence"),
        ),
        (
            *("deepseekv3", f"{SECTION}{CALL}code{SEP}f\n```json\n{{}}\n```{CALLED}{END}"),
            *("", "", [], ["code<｜tool▁sep｜>f\n```json\n{}\n```"], "malformed"),
        ),
        (
            *("deepseekv3_1", f"Hm{SECTION}{CALL}f{SEP}{{}}<｜tool▁call▁end｜>{CALL}g{SEP}[]{CALLED}{END}"),
            *("", "Hm", [("f", "{}")], [f"g{SEP}[]"], "malformed"),
        ),
        ("deepseekv3_1", f"{SECTION}{CALL}{SEP}{{}}{CALLED}{END}", "", "", [], [f"{SEP}{{}}"], "malformed"),
        ("deepseekv3_1", f'{SECTION}{CALL}f{SEP}{{"a', "", "", [], [f'f{SEP}{{"a'], "malformed"),
        (
            *("deepseekv3_1_thinking", f"Why{SECTION}{CALL}f{SEP}{{}}{CALLED}{END}"),
            *("Why", "", [("f", "{}")], [], "stop_sequence"),
        ),
    ],
)
def test_answers_are_read(
    named: Callable[[str], Renderer],
    name: str,
    written: str,
    thought: str,
    text: str,
    called: list[tuple[str, str]],
    unparsed: list[str],
    termination: str,
) -> None:
    renderer = named(name)
    parsed = renderer.parse_response(_ids(renderer, written))
    assert (parsed.message.thinking or "", parsed.message.text) == (thought, text)
    assert [(call.name, call.arguments) for call in parsed.message.tool_calls] == called
    assert list(parsed.unparsed_tool_calls) == unparsed
    assert parsed.termination == termination


@pytest.mark.parametrize("name", sorted(THINKING))
def test_an_answer_to_a_tool_begins_in_text(named: Callable[[str], Renderer], name: str) -> None:
    renderer = named(name)
    before = [USER, Message("assistant", None, (ToolCall("f", "{}", "1"),)), TOOL]
    ids = _ids(renderer, f"It is mild.{END}")
    assert renderer.parse_response(ids, before).message == Message("assistant", "It is mild.")
    assert renderer.parse_response(ids, [USER]).message.thinking == "It is mild."
    assert [*renderer.parse_stream(ids, before)][-1] == renderer.parse_response(ids, before)


CALLS = (ToolCall("f", "{}", "1"),)
THOUGHT = Message("assistant", (ThinkingPart("Why"), TextPart("Hi")))


@pytest.mark.parametrize(
    ("names", "messages", "error"),
    [
        (TOKENIZERS, [Message("developer", "x"), USER], "message 0: role: .* has no 'developer'"),
        (TOKENIZERS, [USER, TOOL], "message 1: role: a tool's result, but no message before it"),
        (
            TOKENIZERS,
            [USER, Message("assistant", "", CALLS), replace(TOOL, tool_call_id="2")],
            "message 2: tool_call_id",
        ),
        (TOKENIZERS, [Message("user", "x", CALLS)], "message 0: tool_calls: only the assistant"),
        (TOKENIZERS, [USER, Message("assistant", "", (ToolCall("f", "[]"),))], r"message 1: tool_calls\[0\]"),
        (TOKENIZERS, [USER, Message("assistant", "", (ToolCall("f", "{"),))], r"message 1: tool_calls\[0\].*not JSON"),
        (TOKENIZERS, [Message("user", (ThinkingPart("x"),))], "message 0: reasoning_content"),
        (TOKENIZERS, [USER, Message("assistant", (ThinkingPart("Why"),), CALLS), TOOL], "message 1: reasoning_content"),
        (["deepseekv3", "deepseekv3_1"], [USER, THOUGHT], "message 1: reasoning_content"),
        (
            ["deepseekv3"],
            [USER, Message("assistant", "Hm", CALLS)],
            "message 1: tool_calls: deepseekv3 has none beside",
        ),
        (
            ["deepseek_r1"],
            [USER, Message("assistant", "Hm", CALLS), TOOL, Message("assistant", "Hm", CALLS)],
            "message 3: content: deepseek_r1 has none beside the calls of a later message",
        ),
        (
            ["deepseekv3_1_thinking"],
            [USER, Message("assistant", (ThinkingPart("Why"),), CALLS)],
            "message 1: reasoning_content",
        ),
        (sorted(THINKING), [USER, Message("assistant", "", CALLS), TOOL, THOUGHT], "message 3: reasoning_content"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    named: Callable[[str], Renderer], names: Sequence[str], messages: list[Message], error: str
) -> None:
    for name in names:
        for build in (
            named(name).build_generation_prompt,
            named(name).build_supervised_example,
            named(name).build_supervised_examples,
        ):
            with pytest.raises(RenderError, match=error):
                build(messages)


def test_the_reasoning_of_an_answer_is_trained_but_no_prompt_shows_it(named: Callable[[str], Renderer]) -> None:
    for name in sorted(THINKING):
        with pytest.raises(RenderError, match="message 1: reasoning_content"):
            named(name).build_generation_prompt([USER, THOUGHT])
        [(ids, weights)] = named(name).build_supervised_examples([USER, THOUGHT])
        written = np.array(ids.to_ints())[weights > 0].tolist()
        assert named(name).parse_response(written).message == THOUGHT
    with pytest.raises(RenderError, match="message 1: reasoning_content"):
        named("deepseek_r1").build_supervised_example([USER, THOUGHT])
    with pytest.raises(RenderError, match="message 1: reasoning_content"):
        named("deepseek_r1").build_supervised_examples([USER, THOUGHT], "all_tokens")
    assert named("deepseekv3_1_thinking").build_supervised_example([USER, THOUGHT])[1].sum() == 4


def test_a_think_block_that_opens_an_answer_is_its_reasoning(named: Callable[[str], Renderer]) -> None:
    spelt = Message("assistant", "<think>\nWhy\n</think>\n\nHi")
    [(ids, _)] = named("deepseek_r1").build_supervised_examples([USER, spelt])
    assert ids == named("deepseek_r1").build_supervised_examples([USER, THOUGHT])[0][0]
    thought = Message("assistant", (ThinkingPart("\nWhy\n"), TextPart("\n\nHi")))
    thinking = named("deepseekv3_1_thinking")
    assert thinking.build_supervised_example([USER, spelt])[0] == thinking.build_supervised_example([USER, thought])[0]
    for name in ("deepseek_r1", "deepseekv3_1", "deepseekv3_1_thinking"):
        rest = replace(spelt, content="\n\nHi")
        prompts = [named(name).build_generation_prompt([USER, said, USER]) for said in (spelt, rest)]
        assert prompts[0] == prompts[1]
        unopened = Message("assistant", "It ends with </think>.")
        assert "ends with </think>." in named(name).tokenizer.decode(
            named(name).build_generation_prompt([USER, unopened, USER]).to_ints()
        )


def test_only_what_a_model_can_write_is_trained_where_it_stands(named: Callable[[str], Renderer]) -> None:
    one, two = (Message("assistant", "", CALLS * num) for num in (1, 2))
    renderer = named("deepseekv3")
    with pytest.raises(RenderError, match="no token is trained"):
        renderer.build_supervised_example([USER, one])
    for said in (one, two):
        [(ids, weights)] = renderer.build_supervised_examples([USER, said])
        assert renderer.tokenizer.decode(ids.to_ints()).endswith("<｜tool▁calls▁end｜><｜end▁of▁sentence｜>")
        assert weights[-1]
    assert renderer.build_supervised_example([USER, two])[1].any()


def test_headers_are_opened_for_those_who_have_one(renderer: Renderer) -> None:
    prompt = renderer.build_generation_prompt([USER, Message("assistant", "Mild.")], role="user").to_ints()
    assert renderer.tokenizer.decode(prompt).endswith("Mild.<｜end▁of▁sentence｜><｜User｜>")
    with pytest.raises(RenderError, match=r"role: .* has no header for 'tool'"):
        renderer.build_generation_prompt([USER], role="tool")
    with pytest.raises(RenderError, match=r"tools: .* declares none, but 1 are given"):
        renderer.build_generation_prompt([USER], [{"type": "function", "function": {"name": "f"}}])


def test_a_late_system_message_moves_to_the_front(renderer: Renderer) -> None:
    said = [Message("system", "A"), USER, Message("assistant", "Hi"), Message("system", "B"), USER]
    text = renderer.tokenizer.decode(renderer.build_generation_prompt(said).to_ints())
    assert text.startswith("<｜begin▁of▁sentence｜>A\n\nB<｜User｜>Weather?<｜Assistant｜>")
    assert not renderer.extends([*said, Message("assistant", "Ho")])
