"""What every registered renderer promises, whatever is said. A new family is held to it by being registered.

A family whose control tokens SmolLM2's tokenizer lacks names its own in ``TOKENIZERS``.
"""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crucible_train.errors import RenderError
from crucible_train.renderers import (
    FastTokenizer,
    ParsedResponse,
    Renderer,
    Termination,
    get_renderer,
    list_renderers,
)
from crucible_train.renderers.answers import Delta, TextDelta, ThinkingDelta
from crucible_train.types import ImagePart, Message

TOKENIZERS = {
    "deepseekv3": ("deepseek_v3",),
    "deepseek_r1": ("deepseek_v3_1",),
    "deepseekv3_1": ("deepseek_v3_1",),
    "deepseekv3_1_thinking": ("deepseek_v3_1",),
    "kimi_k2": ("kimi_k2",),
    "kimi_k2_thinking": ("kimi_k2_thinking",),
    "role_colon": ("smollm2", "qwen3"),
    "qwen3": ("qwen3",),
    "qwen3_disable_thinking": ("qwen3",),
    "qwen3_instruct": ("qwen3",),
    "qwen3_vl": ("qwen3",),
    "qwen3_vl_instruct": ("qwen3",),
    "llama3": ("llama3",),
    "llama3_1": ("llama3",),
    "llama3_2": ("llama3",),
    "gpt_oss_no_sysprompt": ("gpt_oss",),
    "gpt_oss_low_reasoning": ("gpt_oss",),
    "gpt_oss_medium_reasoning": ("gpt_oss",),
    "gpt_oss_high_reasoning": ("gpt_oss",),
}
# What is left of an answer where the template takes something away.
LEFT: dict[str, Callable[[str], str]] = {
    "qwen3": lambda text: text.lstrip("\n"),
    "qwen3_disable_thinking": lambda text: text.lstrip("\n"),
    "qwen3_vl": lambda text: text.lstrip("\n"),
    "llama3": str.strip,
    "llama3_1": str.strip,
    "llama3_2": str.strip,
}
# What stands between an open header and the beginning of an answer.
BEFORE_PREFILL = {name: "<|channel|>final<|message|>" for name in list_renderers() if name.startswith("gpt_oss")}
# An answer that opens with a block of reasoning is read as reasoning and answer, as the template does.
READS_THINK_BLOCKS = {
    *("qwen3", "qwen3_disable_thinking", "qwen3_vl"),
    *("deepseek_r1", "deepseekv3_1", "deepseekv3_1_thinking"),
}
# The whole conversation shows an answer without the reasoning that its prompt opens; each alone shows it.
WHOLE_WITHOUT_ITS_PROMPT = {"deepseek_r1"}
# The template joins a newline of the prompt's with one that may follow it.
JOINS_ITS_PROMPT = {"qwen3_vl"}
# A role that the format has no place for is refused; elsewhere any text can be a role.
KNOWS_ROLES = {
    *("qwen3", "qwen3_disable_thinking", "qwen3_instruct", "qwen3_vl", "qwen3_vl_instruct"),
    *("deepseekv3", "deepseek_r1", "deepseekv3_1", "deepseekv3_1_thinking"),
    *("llama3", "llama3_1", "llama3_2", *(name for name in list_renderers() if name.startswith("gpt_oss"))),
}
WITH_IMAGES = {"qwen3_vl", "qwen3_vl_instruct"}
CASES = [(name, tokenizer) for name in list_renderers() for tokenizer in TOKENIZERS.get(name, ("smollm2",))]
MARKUP = [
    *("<|im_end|>", "<|im_start|>", "<|im_start|>assistant\n", "<|endoftext|>", "<file_sep>", "<|im_", "end|>"),
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "\n\nUser:",
        "\n\n",
        "\n",
        " ",
        "User:",
        "assistant",
        "{{ 7*7 }}",
        "{% if %}",
    ),
]
UNUSUAL = [
    "🙂",
    "👩‍🚀",
    "日本語",
    "\u200b",
    "\ufeff",
    "\u202e",
    "e\u0301",
    "\ue000",
    "\ufffd",
    "\x00",
    "\r",
    "\u2028",
    "ﬁ",
    "12345",
]
TEXTS = st.lists(
    st.sampled_from(MARKUP) | st.sampled_from(UNUSUAL) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    max_size=5,
).map("".join)
QUICK = settings(max_examples=30, deadline=None)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    turns = draw(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
    opening = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    return [
        *opening,
        *(Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)),
    ]


@pytest.fixture(scope="session", params=CASES, ids="-".join)
def renderer(request: pytest.FixtureRequest, tokenizer_named: Callable[[str], FastTokenizer]) -> Renderer:
    name, tokenizer = request.param
    return get_renderer(name, tokenizer_named(tokenizer))


def _as_written(renderer: Renderer, text: str) -> str:
    """The text as the tokenizer gives it back; it may normalise Unicode."""
    return renderer.tokenizer.decode(renderer.tokenizer.encode(text))


def _assume_words_alone(renderer: Renderer, text: str) -> None:
    """A format whose stop is a text cannot carry that text in an answer: it would end there. Think blocks are none."""
    for stop in renderer.stop_sequences():
        assume(isinstance(stop, int) or (text + stop).index(stop) == len(text))
    assume(renderer.name not in READS_THINK_BLOCKS or not text.lstrip().startswith("<think>"))


def _shown(deltas: list[Delta]) -> tuple[str, str]:
    """The text and the reasoning that a stream showed."""
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)),
        "".join(delta.thinking for delta in deltas if isinstance(delta, ThinkingDelta)),
    )


def _said(message: Message) -> tuple[str, str]:
    return message.text, message.thinking or ""


def _controls(renderer: Renderer, ids: list[int]) -> list[int]:
    special = set(renderer.tokenizer.control_tokens.values())
    return [token for token in ids if token in special]


def _answers(messages: list[Message]) -> Iterator[int]:
    return (index for index, message in enumerate(messages) if message.role == "assistant")


@given(messages=conversations())
@QUICK
def test_no_text_becomes_a_control_token(renderer: Renderer, messages: list[Message]) -> None:
    harmless = [Message(message.role, message.text and "x") for message in messages]
    for built in (
        lambda said: renderer.build_supervised_example(said)[0].to_ints(),
        lambda said: renderer.build_generation_prompt(said[:-1]).to_ints(),
        lambda said: renderer.build_generation_prompt(harmless[:-1], prefill=said[-1].content).to_ints(),
    ):
        assert _controls(renderer, built(messages)) == _controls(renderer, built(harmless))


@given(messages=conversations(), name=TEXTS.filter(bool))
@QUICK
def test_no_role_or_name_becomes_a_control_token(renderer: Renderer, messages: list[Message], name: str) -> None:
    assume(name not in {"system", "user", "assistant", "tool"})  # which may have headers of their own
    messages[-2] = Message(name, messages[-2].content, name=name)
    harmless = [*messages[:-2], Message("narrator", "x", name="x"), messages[-1]]
    if renderer.name in KNOWS_ROLES:
        with pytest.raises(RenderError, match=r"^message \d: role: "):
            renderer.build_supervised_example(messages)
        return
    forged, plain = (
        renderer.build_supervised_example(said, "all_tokens")[0].to_ints() for said in (messages, harmless)
    )
    assert _controls(renderer, forged) == _controls(renderer, plain)


@given(messages=conversations())
@QUICK
def test_every_answer_is_trained_after_its_own_prompt_and_reads_back(
    renderer: Renderer, messages: list[Message]
) -> None:
    for index in _answers(messages):
        _assume_words_alone(renderer, messages[index].text)
    examples = renderer.build_supervised_examples(messages)
    left = LEFT.get(renderer.name, str)
    num_trained = 0
    for index in _answers(messages):
        prompt = renderer.build_generation_prompt(messages[:index]).to_ints()
        written = [
            np.array(ids.to_ints())[len(prompt) :][: int(np.append(weights[len(prompt) :], 0).argmin())]
            for ids, weights in examples
            if ids.to_ints()[: len(prompt)] == prompt and weights[len(prompt)]
        ]
        assert len(written) == 1
        parsed = renderer.parse_response(written[0].tolist())
        assert parsed == ParsedResponse(
            Message("assistant", _as_written(renderer, left(messages[index].text))), Termination.STOP_SEQUENCE
        )
        num_trained += len(written[0])
    assert sum(int(weights.sum()) for _, weights in examples) == num_trained


@given(messages=conversations())
@QUICK
def test_a_conversation_begins_with_its_prompt(renderer: Renderer, messages: list[Message]) -> None:
    _assume_words_alone(renderer, messages[-1].text)
    ids = renderer.build_supervised_example(messages)[0].to_ints()
    if renderer.name in WHOLE_WITHOUT_ITS_PROMPT:
        ids = renderer.build_supervised_examples(messages)[-1][0].to_ints()
    prompt = renderer.build_generation_prompt(messages[:-1]).to_ints()
    text = renderer.tokenizer.decode(ids)
    assert text.startswith(renderer.tokenizer.decode(prompt))
    begins_apart = renderer.tokenizer.encode(f"\n{messages[-1].text}")[:1] == renderer.tokenizer.encode("\n")
    if begins_apart and renderer.name not in JOINS_ITS_PROMPT:
        assert ids[: len(prompt)] == prompt


@given(messages=conversations())
@QUICK
def test_ids_and_weights_are_of_equal_length(renderer: Renderer, messages: list[Message]) -> None:
    examples = [
        renderer.build_supervised_example(messages, mode)
        for mode in ("all_tokens", "all_messages", "last_assistant_message")
    ]
    for ids, weights in [*examples, *renderer.build_supervised_examples(messages, "all_messages")]:
        assert weights.dtype == np.float32
        assert weights.shape == (ids.length,)
        assert set(weights.tolist()) <= {0.0, 1.0}
        assert weights.any()
        assert weights[0] == 0


@given(messages=conversations(), spoiled=st.sampled_from(["\ud800", "a\udfff", "🙂\udc00b"]), data=st.data())
@QUICK
def test_half_a_surrogate_pair_is_refused_by_place(
    renderer: Renderer, messages: list[Message], spoiled: str, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(messages) - 1))
    before = messages[index].text
    messages[index] = Message(messages[index].role, before + spoiled)
    place = len(before) + next(i for i, char in enumerate(spoiled) if unicodedata.category(char) == "Cs") + 1
    with pytest.raises(
        RenderError, match=rf"^message {index}: content: character {place} is '\\u[0-9a-f]+', half of a"
    ):
        renderer.build_supervised_example(messages)
    with pytest.raises(RenderError, match=rf"^message {index}: content: character {place} "):
        renderer.build_generation_prompt(messages)


@given(messages=conversations(), after=st.lists(st.integers(0, 49151), max_size=3))
@QUICK
def test_a_stream_shows_the_answer_as_it_stands_and_ends_at_its_stop(
    renderer: Renderer, messages: list[Message], after: list[int]
) -> None:
    _assume_words_alone(renderer, messages[-1].text)
    ids, weights = renderer.build_supervised_examples(messages, "last_assistant_message")[0]
    written = np.array(ids.to_ints())[weights > 0].tolist()
    sampled = iter([*written, *after])
    *shown, parsed = renderer.parse_stream(sampled)
    assert parsed == renderer.parse_response([*written, *after])
    assert _shown(shown) == _said(parsed.message)
    assert list(sampled) == after


@given(ids=st.lists(st.integers(0, 49151), max_size=12))
@QUICK
def test_any_ids_can_be_read(renderer: Renderer, ids: list[int]) -> None:
    *shown, parsed = renderer.parse_stream(ids)
    assert parsed == renderer.parse_response(ids)
    assert _shown(shown) == _said(parsed.message)
    stopped = any(token in renderer.stop_sequences() for token in ids)
    assert parsed.termination.is_clean or not stopped


@given(messages=conversations(), num=st.integers(0, 4))
@QUICK
def test_an_answer_that_is_cut_off_is_malformed_and_keeps_what_was_written(
    renderer: Renderer, messages: list[Message], num: int
) -> None:
    assume(not any(isinstance(stop, str) and stop in messages[-1].text for stop in renderer.stop_sequences()))
    cut = renderer.tokenizer.encode(messages[-1].text)[:num]
    parsed = renderer.parse_response(cut)
    assert parsed.termination is Termination.MALFORMED
    assert "".join(_said(parsed.message)).strip() == renderer.tokenizer.decode(cut).strip()


@given(messages=conversations())
@QUICK
def test_dictionaries_mean_the_same_as_messages(renderer: Renderer, messages: list[Message]) -> None:
    told = [message.to_dict() | {"timestamp": 3} for message in messages]
    assert renderer.build_generation_prompt(told) == renderer.build_generation_prompt(messages)


def test_its_name_and_options_make_it_again(renderer: Renderer) -> None:
    again = get_renderer(renderer.name, renderer.tokenizer, **renderer.options)
    said = [Message("user", "Hello"), Message("assistant", "Hi")]
    assert again.build_supervised_example(said)[0] == renderer.build_supervised_example(said)[0]
    assert again.options == renderer.options


def test_a_prompt_goes_on_with_its_prefill(renderer: Renderer) -> None:
    said = [Message("user", "Hello")]
    bare, filled = (renderer.build_generation_prompt(said, prefill=prefill).to_ints() for prefill in (None, "Well,"))
    between = BEFORE_PREFILL.get(renderer.name, "")
    assert filled[: len(bare)] == bare
    assert renderer.tokenizer.decode(filled[len(bare) :]) == f"{between}Well,"
    assert filled[-2:] == renderer.tokenizer.encode("Well,")


TOOL = {"type": "function", "function": {"name": "get_time", "description": "Tell the time.", "parameters": {}}}
CALL = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("change", "tools"),
    [
        pytest.param({}, [TOOL], id="declared"),
        pytest.param({"tool_calls": [CALL]}, None, id="called"),
    ],
)
def test_tools_are_written_or_refused_but_never_lost(
    renderer: Renderer, change: dict[str, Any], tools: list[dict[str, Any]] | None
) -> None:
    said: list[dict[str, Any]] = [{"role": "user", "content": "Time?"}, {"role": "assistant", "content": "Noon."}]
    with suppress(RenderError):
        ids, _ = renderer.build_supervised_example([said[0], said[1] | change], tools=tools)
        assert ids != renderer.build_supervised_example(said)[0]
        return
    with pytest.raises(RenderError, match="tool"):
        renderer.build_supervised_example([said[0], said[1] | change], tools=tools)


def test_an_empty_conversation_is_refused(renderer: Renderer) -> None:
    for build in (renderer.build_generation_prompt, renderer.build_supervised_example):
        with pytest.raises(RenderError, match="the conversation has no messages"):
            build([])


def test_a_format_without_images_refuses_them(renderer: Renderer) -> None:
    if renderer.name in WITH_IMAGES:
        pytest.skip("it has images")
    with pytest.raises(RenderError, match=f"message 0: content: {renderer.name} has no images"):
        renderer.build_generation_prompt([Message("user", (ImagePart("cat.png"),))])
