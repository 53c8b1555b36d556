"""Which tokens each choice of ``train_on`` trains, written out by hand."""

from itertools import groupby
from typing import Any

import pytest

from crucible_train.errors import ConfigError, RenderError
from crucible_train.renderers import FastTokenizer, TrainOnWhat, get_renderer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "17 * 23?"},
    {"role": "assistant", "content": "Let me see."},
    {"role": "tool", "content": "391"},
    {"role": "assistant", "content": "391."},
]
CHATML = {
    "last_assistant_message": ["391.<|im_end|>"],
    "last_assistant_turn": ["Let me see.<|im_end|>", "391.<|im_end|>"],
    "all_assistant_messages": ["Two.<|im_end|>", "Let me see.<|im_end|>", "391.<|im_end|>"],
    "all_messages": [f"{message['content']}<|im_end|>" for message in TALK],
    "all_tokens": [
        "system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\nTwo.<|im_end|>\n"
        "<|im_start|>user\n17 * 23?<|im_end|>\n"
        "<|im_start|>assistant\nLet me see.<|im_end|>\n"
        "<|im_start|>tool\n391<|im_end|>\n"
        "<|im_start|>assistant\n391.<|im_end|>\n"
    ],
    "all_user_and_system_messages": ["Be brief.<|im_end|>", "1 + 1?<|im_end|>", "17 * 23?<|im_end|>"],
}
# Only an answer that a user follows was trained to hand over to one, so "Let me see." is not trained in the whole.
ROLE_COLON = {
    "last_assistant_message": [" 391.\n\nUser:"],
    "last_assistant_turn": [" 391.\n\nUser:"],
    "all_assistant_messages": [" Two.\n\nUser:", " 391.\n\nUser:"],
    "all_messages": [" Be brief.\n\n", " 1 + 1?\n\n", " Two.\n\nUser: 17 * 23?\n\n", " 391\n\n", " 391.\n\nUser:"],
    "all_tokens": [
        ": Be brief.\n\nUser: 1 + 1?\n\nAssistant: Two.\n\nUser: 17 * 23?\n\nAssistant: Let me see.\n\n"
        "Tool: 391\n\nAssistant: 391.\n\nUser:"
    ],
    "all_user_and_system_messages": [" Be brief.\n\n", " 1 + 1?\n\n", " 17 * 23?\n\n"],
}
ROLE_COLON_AFTER_BOS = {mode: runs for mode, runs in ROLE_COLON.items() if mode != "all_tokens"} | {
    "all_tokens": ["System" + ROLE_COLON["all_tokens"][0]]
}
EXPECTED = {"smollm2": CHATML, "chat_template": CHATML, "role_colon": ROLE_COLON_AFTER_BOS}


def _trained(name: str, tokenizer: FastTokenizer, messages: list[dict[str, Any]], mode: str) -> list[str]:
    """The text of each unbroken run of trained tokens."""
    ids, weights = get_renderer(name, tokenizer).build_supervised_example(messages, mode)
    runs = groupby(zip(ids.to_ints(), weights.tolist(), strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for weight, run in runs if weight]


def test_every_choice_is_written_out_here() -> None:
    for expected in EXPECTED.values():
        assert {*expected, "customized"} == set(TrainOnWhat)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("mode", CHATML)
def test_a_choice_trains_exactly_these_stretches(name: str, mode: str, smollm2: FastTokenizer) -> None:
    assert _trained(name, smollm2, TALK, mode) == EXPECTED[name][mode]


def test_all_tokens_are_all_but_the_first(qwen3: FastTokenizer) -> None:
    assert _trained("role_colon", qwen3, TALK, "all_tokens") == ROLE_COLON["all_tokens"]


def test_all_the_assistant_wrote_is_trained_by_default(smollm2: FastTokenizer) -> None:
    renderer = get_renderer("smollm2", smollm2)
    for build in (renderer.build_supervised_example, renderer.build_supervised_examples):
        assert str(build(TALK)) == str(build(TALK, TrainOnWhat.ALL_ASSISTANT_MESSAGES))


@pytest.mark.parametrize("name", ["smollm2", "chat_template"])
def test_the_flagged_messages_are_trained(name: str, smollm2: FastTokenizer) -> None:
    flags = [False, True, False, False, True, False, False]
    talk = [message | {"trainable": flag} for message, flag in zip(TALK, flags, strict=True)]
    assert _trained(name, smollm2, talk, "customized") == ["1 + 1?<|im_end|>", "Let me see.<|im_end|>"]


@pytest.mark.parametrize("name", ["smollm2", "chat_template"])
@pytest.mark.parametrize("word", ["user", "a", "im_end", "helpful", "x\n", '"', "x" * 60, ""])
def test_what_a_user_wrote_is_found_even_where_the_template_has_the_same_words(
    name: str, word: str, smollm2: FastTokenizer
) -> None:
    talk = [{"role": "user", "content": word}, {"role": "assistant", "content": "ok"}]
    assert _trained(name, smollm2, talk, "all_messages") == [f"{word}<|im_end|>", "ok<|im_end|>"]


@pytest.mark.parametrize("name", ["smollm2", "chat_template"])
@pytest.mark.parametrize("opening", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_message_joined_with_its_header_is_trained_after_that_header(
    name: str, opening: list[dict[str, Any]], smollm2: FastTokenizer
) -> None:
    renderer = get_renderer(name, smollm2)
    talk = [*opening, {"role": "user", "content": "\n\n\nWell?"}, {"role": "assistant", "content": "ok"}]
    assert _trained(name, smollm2, talk, "all_messages")[len(opening) :] != ["\n\n\nWell?<|im_end|>", "ok<|im_end|>"]
    ids, weights = renderer.build_supervised_examples(talk, "all_messages")[-1]
    num_given = weights.tolist().index(1)
    assert smollm2.decode(ids.to_ints()[:num_given]).endswith("<|im_start|>user\n")
    assert smollm2.decode(ids.to_ints()[num_given:]) == "\n\n\nWell?<|im_end|>"
    assert weights[num_given:].all()


def test_an_answer_that_no_user_follows_is_trained_in_an_example_of_its_own(smollm2: FastTokenizer) -> None:
    examples = get_renderer("role_colon", smollm2).build_supervised_examples(TALK)
    trained = [
        smollm2.decode([i for i, w in zip(ids.to_ints(), weights, strict=True) if w]) for ids, weights in examples
    ]
    assert trained == [" Two.\n\nUser: Let me see.\n\nUser:", " 391.\n\nUser:"]


ASKED = [{"role": "user", "content": "1 + 1?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize(
    ("messages", "mode", "error"),
    [
        (
            [ASKED[0] | {"trainable": False}, ANSWERED[1]],
            "customized",
            "message 1: trainable is missing; train_on=customized needs it",
        ),
        (
            [ASKED[0], ANSWERED[1] | {"trainable": True}],
            "all_messages",
            "message 1: trainable is set, but train_on is all_messages; use train_on=customized",
        ),
        (
            [message | {"trainable": False} for message in ANSWERED],
            "customized",
            "no token is trained: train_on=customized selects no message of [user, assistant]",
        ),
        *(
            (ASKED, mode, f"no token is trained: train_on={mode} selects no message of [user]")
            for mode in ("all_assistant_messages", "last_assistant_message", "last_assistant_turn")
        ),
        (
            [ANSWERED[1]],
            "all_user_and_system_messages",
            "no token is trained: train_on=all_user_and_system_messages selects no message of [assistant]",
        ),
        (
            [ASKED[0], ANSWERED[1] | {"trainable": "yes"}],
            "customized",
            "message 1: trainable must be true or false, not 'yes'",
        ),
    ],
)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_choice_that_cannot_be_is_answered_with_its_reason(
    name: str, messages: list[dict[str, Any]], mode: str, error: str, smollm2: FastTokenizer
) -> None:
    renderer = get_renderer(name, smollm2)
    for build in (renderer.build_supervised_example, renderer.build_supervised_examples):
        with pytest.raises(RenderError) as raised:
            build(messages, mode)
        assert str(raised.value) == error


def test_an_unknown_choice_is_answered_with_those_there_are(smollm2: FastTokenizer) -> None:
    with pytest.raises(ConfigError) as raised:
        get_renderer("smollm2", smollm2).build_supervised_example(ANSWERED, "assistant")
    assert str(raised.value) == (
        "train_on: 'assistant' is unknown; known are last_assistant_message, last_assistant_turn, "
        "all_assistant_messages, all_messages, all_tokens, all_user_and_system_messages, customized"
    )
