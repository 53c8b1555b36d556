"""Prompts that go on from the very ids that were sampled."""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from crucible_train.renderers import ParsedResponse, get_renderer
from crucible_train.rl.continuation import next_prompt
from crucible_train.rl.environment import StopReason
from crucible_train.rl.message_env import MessageEnv, Reply
from crucible_train.types import Message, ModelInput, ToolCall
from tests.rl.conftest import Scripted, play

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
TOOLS = ({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}},)


class Talk(MessageEnv):
    """Says some things, one after the other."""

    def __init__(self, renderer, said: Sequence[Sequence[Message]], tools=()) -> None:
        super().__init__(renderer, tools)
        self.said = list(said)
        self.answers: list[ParsedResponse] = []

    async def first_messages(self):
        return self.said.pop(0)

    async def reply(self, answer):
        self.answers.append(answer)
        return Reply(1.0, self.said.pop(0)) if self.said else Reply(2.0, reason=StopReason.COMPLETED)


def user(text: str) -> list[Message]:
    return [Message("user", text)]


def prompts_and_answers(trajectory):
    return [(t.prompt.to_ints(), list(t.action.tokens)) for t in trajectory.transitions]


def extends(trajectory) -> list[bool]:
    pairs = prompts_and_answers(trajectory)
    return [after[: len(p) + len(a)] == p + a for (p, a), (after, _) in pairwise(pairs)]


def test_ids_that_the_tokenizer_would_choose_too_are_continued_as_rendered(smollm2):
    env = Talk(smollm2, [user("one"), user("two"), user("three")])
    trajectory = play(env, Scripted(smollm2, lambda text: f"I hear {len(text)}."))
    assert extends(trajectory) == [True, True]
    for place, transition in enumerate(trajectory.transitions):
        rendered = smollm2.build_generation_prompt(trajectory.messages[: 2 * place + 1])
        assert transition.prompt == rendered
    assert trajectory.reward == 4.0
    assert [message.text for message in trajectory.messages if message.role == "user"] == ["one", "two", "three"]


def test_ids_that_it_would_not_choose_are_kept_all_the_same(smollm2):
    letters = [int(one) for letter in "hello" for one in smollm2.tokenizer.encode(letter)]
    assert letters != [int(one) for one in smollm2.tokenizer.encode("hello")]
    trajectory = play(Talk(smollm2, [user("one"), user("two")]), Scripted(smollm2, lambda text: letters))
    assert extends(trajectory) == [True]
    _, second = trajectory.transitions
    rendered = smollm2.build_generation_prompt(trajectory.messages[:3])
    assert second.prompt != rendered
    decode = smollm2.tokenizer.decode
    assert decode(second.prompt.to_ints()) == decode(rendered.to_ints())
    assert trajectory.messages[1].text == "hello"


@pytest.mark.parametrize("name", ["qwen3_instruct", "qwen3"])
def test_calls_and_results_are_continued(name, qwen3_tokenizer):
    options = {"strip_thinking_from_history": False} if name == "qwen3" else {}
    renderer = get_renderer(name, qwen3_tokenizer, **options)
    said = [user("call f"), [Message("tool", "7"), Message("tool", "8")], user("thanks")]
    thought = "<think>\nhm\n</think>\n\n" if name == "qwen3" else ""
    env = Talk(renderer, said, TOOLS)
    client = Scripted(renderer, lambda text: thought + (CALL if "tool_response" not in text else "done"))
    trajectory = play(env, client)
    assert trajectory.messages[1].tool_calls == (ToolCall("f", '{"x": 1}'),)
    assert extends(trajectory) == [True, True]
    assert trajectory.transitions[2].prompt == renderer.build_generation_prompt(trajectory.messages[:6], TOOLS)


def test_a_call_that_cannot_be_read_stays_in_what_the_model_sees(qwen3_tokenizer):
    renderer = get_renderer("qwen3_instruct", qwen3_tokenizer)
    env = Talk(renderer, [user("call f"), user("that was no call")], TOOLS)
    trajectory = play(env, Scripted(renderer, lambda text: "<tool_call>\nf(1)\n</tool_call>"))
    assert env.answers[0].unparsed_tool_calls
    assert extends(trajectory) == [True]


def test_where_the_format_rewrites_history_it_is_rendered_anew(qwen3_tokenizer):
    renderer = get_renderer("qwen3", qwen3_tokenizer)
    client = Scripted(renderer, lambda text: "<think>\nlong thoughts\n</think>\n\nyes")
    trajectory = play(Talk(renderer, [user("one"), user("two")]), client)
    assert extends(trajectory) == [False]
    assert trajectory.transitions[1].prompt == renderer.build_generation_prompt(trajectory.messages[:3])
    assert "long thoughts" not in client.asked[1][0]


def test_an_answer_that_ended_with_another_stop_is_rendered_anew(smollm2):
    messages = [*user("one"), Message("assistant", "yes"), *user("two")]
    prompt = smollm2.build_generation_prompt(messages[:1])
    rendered = smollm2.build_generation_prompt(messages)
    letters = [int(one) for letter in "yes" for one in smollm2.tokenizer.encode(letter)]
    stop = smollm2.stop_sequences()[0]
    end_of_text = smollm2.tokenizer.control_tokens["<|endoftext|>"]
    assert next_prompt(smollm2, messages, 2, prompt.append_ints([*letters, end_of_text])) == rendered
    written = prompt.append_ints([*letters, stop])
    found = next_prompt(smollm2, messages, 2, written)
    assert found.to_ints()[: written.length] == written.to_ints()
    assert found != rendered


def test_a_format_without_a_stop_token_is_rendered_anew(smollm2):
    renderer = get_renderer("role_colon", smollm2.tokenizer)
    messages = [*user("one"), Message("assistant", "yes"), *user("two")]
    written = renderer.build_generation_prompt(messages[:1]).append_ints([1, 2, 3])
    assert next_prompt(renderer, messages, 2, written) == renderer.build_generation_prompt(messages)


def test_nothing_but_the_first_prompt_is_asked_of_an_empty_input(smollm2):
    messages = [*user("one"), Message("assistant", "yes"), *user("two")]
    assert next_prompt(smollm2, messages, 2, ModelInput.empty()) == smollm2.build_generation_prompt(messages)


def test_an_answer_that_history_has_no_place_for_ends_the_episode(qwen3_tokenizer):
    renderer = get_renderer("qwen3_instruct", qwen3_tokenizer)
    env = Talk(renderer, [user("one"), [Message("nobody", "?")]])
    trajectory = play(env, Scripted(renderer, lambda text: "yes"))
    assert trajectory.reason is StopReason.PARSE_ERROR
    assert trajectory.reward == 1.0


def test_a_reply_goes_on_or_has_a_reason_not_to():
    with pytest.raises(ValueError, match="a reply has messages"):
        Reply(1.0)
    with pytest.raises(ValueError, match="a reply has messages"):
        Reply(1.0, user("on"), StopReason.COMPLETED)
