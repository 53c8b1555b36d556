"""Groups for people: what is shown, that it stays text, and that it stays small."""

import html
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train import files
from crucible_train.report import logtree
from crucible_train.report.logtree import LoggedGroup, logtree_json, render_logtree
from crucible_train.rl.environment import StopReason, Trajectory, TrajectoryGroup, Transition
from crucible_train.types import ImagePart, Message, ModelInput, TextPart, ThinkingPart, TokensWithLogprobs, ToolCall

VOID = {"meta", "br", "hr"}
USER = Message("user", "What is 2 + 2?")


class Page(HTMLParser):
    """Elements that stand open or closed as they should, every attribute, and the text of every element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data


def turn(reward: float, num_tokens: int = 3, **parts: float) -> Transition:
    action = TokensWithLogprobs(tuple(range(num_tokens)), (-1.0,) * num_tokens, "stop")
    return Transition(ModelInput.from_ints([1, 2]), action, reward, 7, parts)


def group(*messages: tuple[Message, ...], rewards: tuple[float, ...] = (), **fields: Any) -> TrajectoryGroup:
    rewards = rewards or (1.0,) * len(messages)
    trajectories = tuple(
        Trajectory((turn(reward, correct=reward),), StopReason.COMPLETED, said)
        for said, reward in zip(messages, rewards, strict=True)
    )
    return TrajectoryGroup("sums/1", trajectories, (0.0,) * len(messages), **fields)


def said(*texts: str) -> list[LoggedGroup]:
    return [LoggedGroup(3, group(*((USER, Message("assistant", text)) for text in texts)), (0.0,) * len(texts))]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</template></pre></details>",
        "<!-- ",
        "&lt;b&gt; &amp;",
        "{{ 7 * 7 }}",
        "]]>",
        "\"'>",
    ],
)
def test_what_a_sample_writes_stays_text_wherever_it_stands(text: str) -> None:
    message = Message("assistant", (ThinkingPart(text), TextPart(text)), (ToolCall(text, text, text),), name=text)
    answer = Message("tool", text, tool_call_id=text, name=text)
    failed = Trajectory(
        (turn(0.0, **{text: 1.0}),), StopReason.ERROR, (Message(text or "x", text), message, answer), text
    )
    logged = LoggedGroup(1, TrajectoryGroup(text, (failed,), (0.0,), (text,)), (0.5,))
    page = render_logtree([logged], text)
    parsed = Page(page)
    plain = Page(render_logtree([logged], "x").replace(html.escape(text, quote=True), "x"))
    assert "script" not in parsed.tags
    assert "template" not in parsed.tags
    assert "b" not in parsed.tags
    assert parsed.tags == plain.tags
    assert parsed.texts["title"] == [text]
    assert parsed.texts["pre"].count(text) == 6  # error, first message, thinking, words, arguments, result
    assert "49" not in "".join(parsed.texts["main"])


def test_the_page_needs_nothing_else() -> None:
    parsed = Page(render_logtree(said("4"), "a run"))
    assert {"script", "link", "img", "iframe"}.isdisjoint(parsed.tags)
    named = {name for name, _ in parsed.attributes}
    assert {"src", "onclick", "srcset"}.isdisjoint(named)
    assert all(value.startswith("#") for name, value in parsed.attributes if name == "href" and value)
    assert "url(" not in "".join(parsed.texts["style"])


def test_samples_are_coloured_by_their_advantage_and_say_its_sign() -> None:
    logged = LoggedGroup(1, group(*[(USER,)] * 4, rewards=(1.0, 0.5, 0.0, 0.25)), (0.5, 0.25, -0.5, 0.0))
    page = render_logtree([logged], "t")
    parsed = Page(page)
    kinds = [value for name, value in parsed.attributes if name == "class" and value and value.startswith("sample ")]
    assert kinds == ["sample above", "sample above", "sample below", "sample even"]
    styles = [value for name, value in parsed.attributes if name == "style"]
    assert styles == [f"--strength: {strength}%" for strength in (100, 50, 100, 0)] * 2  # overview and blocks
    shown = [" ".join(text.split()) for text in parsed.texts["summary"]]
    assert [text.split(" reward")[0] for text in shown] == [
        "advantage +0.5",
        "advantage +0.25",
        "advantage -0.5",
        "advantage 0",
    ]


def test_everything_of_a_sample_is_there() -> None:
    messages = (
        Message("system", "Be exact."),
        USER,
        Message(
            "assistant", (ThinkingPart("hm"), TextPart("I ask."), ImagePart(None)), (ToolCall("add", "[2, 2]", "c1"),)
        ),
        Message("tool", "4", tool_call_id="c1", name="add"),
        Message("assistant", "4"),
    )
    turns = (turn(0.0, 3, format=-0.1), turn(1.0, 5, correct=1.0, format=0.0))
    trajectory = Trajectory(turns, StopReason.MAX_TURNS, messages)
    failed = Trajectory((), StopReason.ERROR, messages[:2], "the tool broke")
    logged = LoggedGroup(
        9, TrajectoryGroup("tools/1", (trajectory, failed), (0.25, 0.0), ("tools", "easy"), num_failed=2), (1.0, -1.0)
    )
    (shown,) = logtree_json([logged], "t")["groups"]
    assert (shown["step"], shown["tags"], shown["num_failed"]) == (9, ["tools", "easy"], 2)
    assert [message["role"] for message in shown["prompt"]] == ["system", "user"]
    first, second = shown["samples"]
    assert (first["reward"], first["group_reward"], first["reward_parts"]) == (
        1.25,
        0.25,
        {"format": -0.1, "correct": 1.0},
    )
    assert (first["stop_reason"], first["num_tokens"], len(first["turns"])) == ("max_turns", 8, 2)
    assert [message["role"] for message in first["messages"]] == ["assistant", "tool", "assistant"]
    assert [part["kind"] for part in first["messages"][0]["parts"]] == ["thinking", "text", "image"]
    assert first["messages"][0]["tool_calls"][0]["arguments"]["text"] == "[2, 2]"
    assert second["error"]["text"] == "the tool broke"
    text = " ".join("".join(Page(render_logtree([logged], "t")).texts["main"]).split())
    for wanted in ("tools/1", "easy", "2 more failed", "Be exact.", "I ask.", "a picture", "calls add · c1", "[2, 2]"):
        assert wanted in text
    for wanted in (
        "tool · add · answers c1",
        "max_turns · 8 tokens · 2 turns",
        "from the group 0.25",
        "the tool broke",
    ):
        assert wanted in text


def test_a_prompt_that_samples_do_not_share_stays_with_each() -> None:
    mine, yours = (Message("user", text) for text in ("mine", "yours"))
    logged = LoggedGroup(1, group((USER, mine), (USER, yours)), (0.0, 0.0))
    (shown,) = logtree_json([logged], "t")["groups"]
    assert len(shown["prompt"]) == 1
    assert [sample["messages"][0]["parts"][0]["text"] for sample in shown["samples"]] == ["mine", "yours"]


def test_long_texts_are_cut_and_counted() -> None:
    value = logtree_json(said("y" * (logtree.MAX_CHARACTERS + 1234)), "t")
    part = value["groups"][0]["samples"][0]["messages"][0]["parts"][0]
    assert part["text"] == "y" * logtree.MAX_CHARACTERS
    assert part["num_characters_left_out"] == 1234
    assert "… 1,234 more characters" in render_logtree(said("y" * (logtree.MAX_CHARACTERS + 1234)), "t")


def test_many_messages_samples_and_groups_are_cut_and_counted() -> None:
    long = (USER, *[Message("assistant", "x")] * (logtree.MAX_MESSAGES + 5))
    one = LoggedGroup(1, group(long, *[(USER,)] * (logtree.MAX_SAMPLES + 1)), (0.0,) * (logtree.MAX_SAMPLES + 2))
    value = logtree_json([one], "t")["groups"][0]
    assert (len(value["samples"]), value["num_samples_left_out"]) == (logtree.MAX_SAMPLES, 2)
    assert value["samples"][0]["num_messages_left_out"] == 5
    page = render_logtree([one], "t")
    assert "… 5 more messages" in page
    assert "… 2 more samples" in page
    many = render_logtree(said("4") * (logtree.MAX_GROUPS + 3), "t")
    assert "3 more groups are not shown" in many


def test_numbers_that_are_none_and_groups_that_are_empty_are_shown(tmp_path: Path) -> None:
    broken = LoggedGroup(1, group((USER,), rewards=(float("nan"),)), (float("inf"),))
    empty = LoggedGroup(2, TrajectoryGroup("sums/2", (), (), num_failed=4), ())
    page = render_logtree([broken, empty], "t")
    text = "".join(Page(page).texts["main"])
    assert "not a number" in text
    assert "4 more failed" in text
    files.write_json(tmp_path / "logtree.json", logtree_json([broken, empty], "t"))
    value = json.loads((tmp_path / "logtree.json").read_text(encoding="utf-8"))
    assert value["schema_version"] == 1
    assert value["groups"][0]["samples"][0]["advantage"] is None
    assert "No group was logged" in render_logtree([], "t")


def test_control_characters_are_seen_and_half_characters_can_be_written(tmp_path: Path) -> None:
    page = render_logtree(said("a\tb\x1b[31m \u202e c \ud83d"), "t")
    files.write_text(tmp_path / "logtree.html", page)
    assert "a\tb␛[31m ⟨U+202E⟩ c ?" in page


def test_a_group_has_as_many_advantages_as_samples() -> None:
    with pytest.raises(ValueError, match="1 trajectories but 2 advantages"):
        LoggedGroup(1, group((USER,)), (0.0, 1.0))


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    shown = Page(render_logtree(said(text), "t")).texts["pre"][-1]
    assert shown.removeprefix("\n" * text.startswith("\n")) == logtree._visible(text) or not text  # browsers drop one


def test_solved_examples_belong_to_the_prompt() -> None:
    shown = (Message("user", "1 + 1?"), Message("assistant", "2"), Message("user", "2 + 2?"))
    samples = [
        Trajectory((turn(1.0, correct=1.0),), StopReason.COMPLETED, (*shown, Message("assistant", said)))
        for said in ("4", "4", "5")
    ]
    group = TrajectoryGroup("2 + 2", tuple(samples), (0.0, 0.0, 0.0))
    [told] = logtree_json([LoggedGroup(1, group, (0.0, 0.0, 0.0))], "t")["groups"]
    assert [message["parts"][0]["text"] for message in told["prompt"]] == ["1 + 1?", "2", "2 + 2?"]
    assert [[m["parts"][0]["text"] for m in sample["messages"]] for sample in told["samples"]] == [["4"], ["4"], ["5"]]
