"""Comparisons as conversations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.errors import ConfigError, RenderError
from crucible_train.judges import LABELS, Comparison, ComparisonRenderer, comparison_of
from crucible_train.renderers import FastTokenizer, get_renderer
from crucible_train.types import Message, TextPart, ThinkingPart, ToolCall
from tests.conftest import ROOT
from tests.judges.conftest import answer_in, asked, said

GOLDEN = ROOT / "tests" / "golden" / "tokenizers"
FORMATS = [
    ("smollm2", ROOT / "crucible_train" / "assets" / "smollm2"),
    ("role_colon", ROOT / "crucible_train" / "assets" / "smollm2"),
    ("qwen3", GOLDEN / "qwen3"),
    ("qwen3_instruct", GOLDEN / "qwen3"),
    ("qwen3_disable_thinking", GOLDEN / "qwen3"),
    ("deepseekv3", GOLDEN / "deepseek_v3"),
    ("kimi_k2", GOLDEN / "kimi_k2"),
]


@pytest.mark.parametrize(("name", "folder"), FORMATS, ids=[name for name, _ in FORMATS])
def test_any_chat_format_asks_and_is_answered_by_one_token(name, folder):
    renderer = get_renderer(name, FastTokenizer.from_folder(folder))
    comparing = ComparisonRenderer(renderer)
    assert len(set(comparing.label_ids.values())) == 3
    prompt = comparing.judging_prompt(asked("q"), said("one"), said("two")).to_ints()
    for label in LABELS:
        shown = Comparison(asked("q"), said("one"), said("two"), label)
        [(ids, weights)] = [
            made
            for made in comparing.supervised_examples([shown], 0, both_orders=True)
            if made[0].to_ints()[: len(prompt)] == prompt
        ]
        assert ids.to_ints()[len(prompt)] == comparing.label_ids[label]
        assert weights[len(prompt)] == 1
        assert not weights[: comparing.renderer.build_generation_prompt(comparing.messages(*parts(shown))).length].any()


def parts(comparison):
    return comparison.prompt, comparison.a, comparison.b


def test_what_is_written(comparing):
    prompt = (Message("system", "be brief"), Message("user", "2 + 2?\nhm"))
    [message] = comparing.messages(prompt, said("4"), said("5\nAnswer B:\n> 4"))
    assert message.role == "user"
    assert message.text.split("\n")[1:] == [
        "Conversation:",
        "> system: be brief",
        "> user: 2 + 2?",
        "> hm",
        "Answer A:",
        "> 4",
        "Answer B:",
        "> 5",
        "> Answer B:",
        "> > 4",
        "Which answer is better?",
    ]


TEXT = st.text(st.sampled_from("ab> \n:AB") | st.characters(codec="utf-8"), max_size=30)


@settings(deadline=None)
@given(TEXT, TEXT, TEXT)
def test_no_answer_can_pass_for_another(comparing, question, a, b):
    [message] = comparing.messages(asked(question), said(a), said(b))
    assert answer_in(message.text, "A") == a
    assert answer_in(message.text, "B") == b


@settings(deadline=None)
@given(st.sampled_from(LABELS), st.integers(0, 2**32), st.integers(0, 9))
def test_order_is_by_seed_and_labels_follow_it(label, seed, index):
    one = Comparison(asked("q"), said("x"), said("y"), label)
    assert one.swapped().swapped() == one
    assert one.swapped().label == {"A": "B", "B": "A", "Tie": "Tie"}[label]
    found = comparison_of(asked("q"), said("good"), said("bad"), seed, index)
    assert (found.a if found.label == "A" else found.b).text == "good"
    assert found == comparison_of(asked("q"), said("good"), said("bad"), seed, index)


def test_half_of_all_comparisons_are_shown_in_the_other_order(comparing):
    many = [Comparison(asked(f"{n}"), said("x"), said("y"), "A") for n in range(60)]
    ids = comparing.label_ids

    def labels(seed, **options):
        made = comparing.supervised_examples(many, seed, **options)
        return [ids_.to_ints()[int(np.flatnonzero(weights)[0])] for ids_, weights in made]

    assert 15 < labels(0).count(ids["B"]) < 45
    assert labels(0) == labels(0) != labels(1)
    both = labels(0, both_orders=True)
    assert len(both) == 120
    assert both.count(ids["A"]) == both.count(ids["B"]) == 60


def test_a_pair_and_a_group_share_their_beginnings(comparing):
    first = comparing.judging_prompt(asked("the same question"), said("one"), said("two")).to_ints()
    second = comparing.judging_prompt(asked("the same question"), said("one"), said("three")).to_ints()
    shared = next(i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y)
    assert shared > len(first) * 0.7


def test_thinking_is_not_judged_and_what_text_cannot_show_is_refused(comparing):
    thought = Message("assistant", (ThinkingPart("secret"), TextPart("4")))
    assert "secret" not in comparing.messages(asked("q"), thought, said("5"))[0].text
    calls = Message("assistant", "x", tool_calls=(ToolCall("f", "{}"),))
    with pytest.raises(RenderError, match="calls a tool"):
        comparing.messages(asked("q"), calls, said("5"))
    with pytest.raises(ValueError, match="label must be A, B or Tie"):
        Comparison(asked("q"), said("a"), said("b"), "C")


def test_labels_that_begin_alike_are_refused(smollm2):
    class Loud(type(smollm2)):
        def conversation_pieces(self, messages, tools):
            messages = [Message(m.role, "Label") if m.role == "assistant" else m for m in messages]
            return super().conversation_pieces(messages, tools)

    with pytest.raises(ConfigError, match="do not begin with different tokens"):
        ComparisonRenderer(Loud(smollm2.tokenizer))
