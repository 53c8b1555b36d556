"""How the answers of gpt-oss read: channels, calls, and what a model may write that is neither."""

from collections.abc import Callable
from typing import Any

import pytest

from crucible_train.renderers import (
    FastTokenizer,
    ParsedResponse,
    Renderer,
    Termination,
    TextDelta,
    ThinkingDelta,
    get_renderer,
)
from crucible_train.types import Message, TextPart, ThinkingPart, ToolCall

USER = {"role": "user", "content": "Time?"}
_TIME = ToolCall("get_time", '{"a": 1}')
_COMMENTARY = ("<|channel|>", "commentary", "<|message|>")
_FINAL = ("<|channel|>", "final", "<|message|>")
_ANALYSIS = ("<|channel|>", "analysis", "<|message|>")
_TO = (" to=functions.get_time", "<|channel|>", "commentary ", "<|constrain|>", "json", "<|message|>")
_NEXT = ("<|end|>", "<|start|>", "assistant")


@pytest.fixture(scope="module")
def bare(tokenizer_named: Callable[[str], FastTokenizer]) -> Renderer:
    return get_renderer("gpt_oss_no_sysprompt", tokenizer_named("gpt_oss"))


def _ids(renderer: Renderer, written: list[str]) -> list[int]:
    controls, encode = renderer.tokenizer.control_tokens, renderer.tokenizer.encode
    return [id_ for part in written for id_ in ([controls[part]] if part in controls else encode(part))]


def _thought(thinking: str, text: str = "") -> tuple[ThinkingPart | TextPart, ...]:
    return (ThinkingPart(thinking), TextPart(text)) if text else (ThinkingPart(thinking),)


@pytest.mark.parametrize(
    ("written", "message", "is_clean", "unparsed"),
    [
        pytest.param([*_FINAL, "Hi", "<|return|>"], Message("assistant", "Hi"), True, (), id="final"),
        pytest.param(
            [*_ANALYSIS, "Hm", *_NEXT, *_FINAL, "Hi", "<|return|>", "<|call|>"],
            Message("assistant", _thought("Hm", "Hi")),
            True,
            (),
            id="analysis, final, two stops",
        ),
        pytest.param(
            [*_ANALYSIS, "Hm", *_NEXT, *_COMMENTARY, "Look", *_NEXT, *_TO, '{"a": 1}', "<|call|>"],
            Message("assistant", _thought("Hm", "Look"), (_TIME,)),
            True,
            (),
            id="analysis, preamble, call",
        ),
        pytest.param(
            [
                *("<|channel|>", "commentary to=functions.get_time ", "<|constrain|>", "json", "<|message|>"),
                *('{"a": 1}', "<|call|>"),
            ],
            Message("assistant", "", (_TIME,)),
            True,
            (),
            id="recipient in the channel",
        ),
        pytest.param(
            ["<|channel|>", "commentary to=functions.get_time json", "<|message|>", '{"a": 1}', "<|call|>"],
            Message("assistant", "", (_TIME,)),
            True,
            (),
            id="type without its marker",
        ),
        pytest.param(
            [*_TO, '{"a": 1}', "<|end|>", "<|start|>", "assistant", *_TO, '{"a": 1}', "<|call|>"],
            Message("assistant", "", (_TIME, _TIME)),
            True,
            (),
            id="two calls",
        ),
        pytest.param([*_TO, '{"a": 1}', "<|return|>"], Message("assistant", "", (_TIME,)), True, (), id="call, return"),
        pytest.param([*_TO, '{"a": 1}'], Message("assistant", "", (_TIME,)), False, (), id="call cut off"),
        pytest.param(
            [*_TO, '{"a": ', "<|call|>"],
            Message("assistant", ""),
            False,
            (' to=functions.get_time<|channel|>commentary <|constrain|>json<|message|>{"a": ',),
            id="arguments that are not JSON",
        ),
        pytest.param(
            [*_TO, "[1]", "<|call|>"],
            Message("assistant", ""),
            False,
            (" to=functions.get_time<|channel|>commentary <|constrain|>json<|message|>[1]",),
            id="arguments that are no object",
        ),
        pytest.param(
            [*_TO, '{"a": "', "<|channel|>", '"}', "<|call|>"],
            Message("assistant", ""),
            False,
            (' to=functions.get_time<|channel|>commentary <|constrain|>json<|message|>{"a": "<|channel|>"}',),
            id="marker in arguments",
        ),
        pytest.param(
            [" to=python", "<|channel|>", "analysis", "<|message|>", "{}", "<|call|>"],
            Message("assistant", ""),
            False,
            (" to=python<|channel|>analysis<|message|>{}",),
            id="a tool nobody declared",
        ),
        pytest.param(
            [" to=functions.get_time", "<|channel|>", "comm", "<|return|>"],
            Message("assistant", ""),
            False,
            (" to=functions.get_time<|channel|>comm",),
            id="header of a call alone",
        ),
        pytest.param(
            [*_COMMENTARY, "{}", "<|call|>"], Message("assistant", "{}"), False, (), id="call without recipient"
        ),
        pytest.param([*_FINAL, "Hi"], Message("assistant", "Hi"), False, (), id="cut off"),
        pytest.param(
            [*_ANALYSIS, "a", *_NEXT, *_ANALYSIS, "b", *_NEXT, *_FINAL, "c", *_NEXT, *_FINAL, "d", "<|return|>"],
            Message("assistant", _thought("a\n\nb", "c\n\nd")),
            True,
            (),
            id="two of a kind",
        ),
        pytest.param(
            [*_FINAL, "Hi", "<|end|>", "<|start|>", "user", "<|message|>", "Bye", "<|return|>"],
            Message("assistant", "Hi\n\nBye"),
            False,
            (),
            id="another speaker",
        ),
        pytest.param(
            [*_FINAL, "Hi", "<|start|>", "assistant", *_FINAL, "Ho", "<|return|>"],
            Message("assistant", "Hi\n\nHo"),
            False,
            (),
            id="no end",
        ),
        pytest.param(
            ["<|channel|>", "odd", "<|message|>", "Hi", "<|return|>"],
            Message("assistant", "Hi"),
            False,
            (),
            id="channel",
        ),
        pytest.param(["<|message|>", "Hi", "<|return|>"], Message("assistant", "Hi"), True, (), id="no channel"),
        pytest.param(["<|channel|>", "final", "<|return|>"], Message("assistant", ""), False, (), id="header alone"),
        pytest.param(
            ["<|start|>", "assistant", *_FINAL, "Hi", "<|return|>"], Message("assistant", "Hi"), True, (), id="start"
        ),
        pytest.param(
            [*_FINAL, "a", "<|message|>", "b", "<|return|>"],
            Message("assistant", "a<|message|>b"),
            False,
            (),
            id="stray",
        ),
        pytest.param(["<|end|>", "<|return|>"], Message("assistant", ""), False, (), id="end alone"),
        pytest.param(["<|return|>"], Message("assistant", ""), True, (), id="nothing"),
        pytest.param([], Message("assistant", ""), False, (), id="not even a stop"),
    ],
)
def test_an_answer_reads_as_what_it_is(
    bare: Renderer, written: list[str], message: Message, is_clean: bool, unparsed: tuple[str, ...]
) -> None:
    ids = _ids(bare, written)
    *shown, parsed = bare.parse_stream(ids)
    assert parsed == bare.parse_response(ids)
    assert parsed.message == message
    assert parsed.termination is (Termination.STOP_SEQUENCE if is_clean else Termination.MALFORMED)
    assert parsed.unparsed_tool_calls == unparsed
    assert _shown(shown) == (message.text, message.thinking or "")


def test_a_stream_shows_thinking_and_text_as_they_come(bare: Renderer) -> None:
    *shown, _ = bare.parse_stream(_ids(bare, [*_ANALYSIS, "One two", *_NEXT, *_FINAL, "Three four", "<|return|>"]))
    assert shown == [ThinkingDelta("One"), ThinkingDelta(" two"), TextDelta("Three"), TextDelta(" four")]


def test_a_prefilled_answer_is_a_final_one_and_goes_on_as_text(bare: Renderer) -> None:
    prompt = bare.build_generation_prompt([USER], prefill="It is")
    assert bare.tokenizer.decode(prompt.to_ints()).endswith("assistant<|channel|>final<|message|>It is")
    *shown, parsed = bare.parse_stream(_ids(bare, [" to be", " noon.", "<|return|>"]))
    assert parsed == ParsedResponse(Message("assistant", " to be noon."), Termination.STOP_SEQUENCE)
    assert len(shown) > 1


def _shown(deltas: list[Any]) -> tuple[str, str]:
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)),
        "".join(delta.thinking for delta in deltas if isinstance(delta, ThinkingDelta)),
    )
