"""Guess-the-number and the calculator, played to the end by scripted policies."""

import re
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.errors import ConfigError
from crucible_train.renderers import get_renderer
from crucible_train.rl.environment import CallsTools, Env, StopReason
from crucible_train.rl.environments import problems
from crucible_train.rl.environments.calculator import calc
from crucible_train.rl.environments.guess_the_number import GuessEnv, GuessOptions
from crucible_train.types import Message
from tests.rl.conftest import Scripted, play, play_group


def halving(low: int, high: int):
    """A policy that reads the hints of the game at hand and halves what is left."""

    def rule(text: str) -> str:
        game = text.rpartition("I think of")[2]
        below, above = low, high
        for guess, hint in re.findall(r"assistant\n(-?\d+)<\|im_end\|>\n<\|im_start\|>user\n(higher|lower)", game):
            below, above = (int(guess) + 1, above) if hint == "higher" else (below, int(guess) - 1)
        return str((below + above) // 2)

    return rule


@pytest.mark.parametrize("shows_game", [True, False])
@pytest.mark.parametrize("number", [1, 7, 20])
def test_a_number_is_found_by_halving(smollm2, number, shows_game):
    env = GuessEnv(number, GuessOptions(shows_game=shows_game), smollm2)
    assert isinstance(env, Env)
    trajectory = play(env, Scripted(smollm2, halving(1, 20)))
    num = len(trajectory.transitions)
    assert trajectory.reason is StopReason.COMPLETED
    assert trajectory.reward == pytest.approx(1 - 0.5 * (num - 1) / 7)
    assert trajectory.transitions[-1].reward_parts == {"found": 1.0, "format": 1.0}
    assert trajectory.messages[-1].text == str(number)
    for before, after in pairwise(trajectory.transitions):
        written = before.prompt.to_ints() + list(before.action.tokens)
        assert after.prompt.to_ints()[: len(written)] == written


def test_guesses_that_run_out_earn_nothing(smollm2):
    trajectory = play(GuessEnv(7, GuessOptions(max_guesses=3), smollm2), Scripted(smollm2, lambda text: "1"))
    assert (trajectory.reason, trajectory.reward, len(trajectory.transitions)) == (StopReason.MAX_TURNS, 0.0, 3)


def test_an_answer_without_a_number_costs_and_the_game_goes_on(smollm2):
    client = Scripted(smollm2, lambda text: "7" if text.count("Answer with a number.") else "hm")
    trajectory = play(GuessEnv(7, GuessOptions(turn_cost=0.0), smollm2), client)
    assert trajectory.reward == 0.9
    assert trajectory.transitions[0].reward_parts == {"found": 0.0, "format": 0.0}


def test_the_game_that_is_shown_is_won_and_its_number_asked_nowhere(smollm2):
    made = problems("guess_the_number", {}, smollm2, 0)
    client = Scripted(smollm2, halving(1, 20))
    play(made.train(0).make_env(), client)
    shown = client.asked[0][0].split("Right. I think")[0]
    number = int(re.findall(r"assistant\n(\d+)<", shown)[-1])
    asked = [*(made.train(index) for index in range(made.num_train)), *made.held_out]
    numbers = sorted(int(re.search(r"\d+", one.problem)[0]) for one in asked)
    assert numbers == [n for n in range(1, 21) if n != number]


def test_a_group_guesses_the_same_number(smollm2):
    group = play_group(problems("guess_the_number", {}, smollm2, 0).train(3), Scripted(smollm2, halving(1, 20)), 3)
    assert group is not None
    assert len(set(group.rewards_G)) == 1
    assert group.rewards_G[0] > 0.4


def test_numbers_that_are_none_are_refused(smollm2):
    with pytest.raises(ConfigError, match=r"env\.options\.max_number: must be above"):
        problems("guess_the_number", {"min_number": 5, "max_number": 5}, smollm2, 0)


# The calculator -------------------------------------------------------------------------------------------------------


def caller(text: str) -> str:
    """Calls the calculator, then gives the last result."""
    asked = re.findall(r"What is (\d+ \* \d+)\?", text)[-1]
    after = text.rpartition(asked)[2]
    if found := re.search(r"(?:result: |<tool_response>\n)(\d+)", after):
        return found[1]
    if "<tools>" in text:
        return f'<tool_call>\n{{"name": "calc", "arguments": {{"expression": "{asked}"}}}}\n</tool_call>'
    return f"calc: {asked}"


@pytest.fixture(params=["smollm2", "qwen3_instruct"])
def renderer(request, smollm2, qwen3_tokenizer):
    return smollm2 if request.param == "smollm2" else get_renderer(request.param, qwen3_tokenizer)


@pytest.mark.parametrize("num_shots", [0, 2])
def test_a_product_is_worked_out_with_the_tool(renderer, num_shots):
    env = problems("calculator", {"num_shots": num_shots}, renderer, 0).train(0).make_env()
    assert isinstance(env, Env)
    assert isinstance(env, CallsTools)
    trajectory = play(env, Scripted(renderer, caller))
    assert trajectory.reason is StopReason.COMPLETED
    assert trajectory.reward == 1.0
    assert len(trajectory.transitions) == 2
    assert trajectory.transitions[0].metrics == {"tool_calls": 1.0, "failed_tool_calls": 0.0}
    assert trajectory.transitions[1].metrics == {"called": 1.0}
    first, second = trajectory.transitions
    written = first.prompt.to_ints() + list(first.action.tokens)
    assert second.prompt.to_ints()[: len(written)] == written
    native = renderer.name == "qwen3_instruct"
    assert trajectory.messages[-2].role == ("tool" if native else "user")
    assert bool(trajectory.messages[-3].tool_calls) is native


def test_native_tools_are_declared_to_the_format_and_lines_to_the_model(renderer):
    client = Scripted(renderer, caller)
    play(problems("calculator", {}, renderer, 0).train(0).make_env(), client)
    text = client.asked[0][0]
    assert ('"name": "calc"' in text) is (renderer.name == "qwen3_instruct")
    assert ("\ncalc: expression" in text) is (renderer.name == "smollm2")


def test_lines_may_be_wanted_and_native_tools_are_refused_where_there_are_none(qwen3_tokenizer, smollm2):
    renderer = get_renderer("qwen3_instruct", qwen3_tokenizer)
    client = Scripted(renderer, caller)
    play(problems("calculator", {"tool_syntax": "lines"}, renderer, 0).train(0).make_env(), client)
    assert "calc: expression" in client.asked[0][0]
    with pytest.raises(ConfigError, match="tool_syntax: smollm2 has no tools"):
        problems("calculator", {"tool_syntax": "native"}, smollm2, 0)


def test_an_answer_without_the_tool_is_judged_too(smollm2):
    env = problems("calculator", {}, smollm2, 0).train(0).make_env()
    trajectory = play(env, Scripted(smollm2, lambda text: "no idea"))
    assert (trajectory.reward, trajectory.reason) == (-0.1, StopReason.COMPLETED)
    assert trajectory.transitions[0].metrics == {"called": 0.0}


def test_calls_beyond_the_limit_are_not_made_and_end_the_episode(smollm2):
    client = Scripted(smollm2, lambda text: "calc: 2+2")
    trajectory = play(problems("calculator", {}, smollm2, 0).train(0).make_env(), client, max_tool_calls=2)
    assert trajectory.reason is StopReason.MAX_TOOL_CALLS
    assert len(trajectory.transitions) == 3
    assert [t.metrics.get("tool_calls") for t in trajectory.transitions] == [1.0, 1.0, None]
    assert [message.text for message in trajectory.messages].count("result: 4") == 2
    none = play(problems("calculator", {}, smollm2, 0).train(0).make_env(), client, max_tool_calls=0)
    assert (none.reason, len(none.transitions)) == (StopReason.MAX_TOOL_CALLS, 1)


def test_a_call_in_an_answer_that_is_cut_off_is_not_made(smollm2):
    env = problems("calculator", {}, smollm2, 0).train(0).make_env()
    trajectory = play(env, Scripted(smollm2, lambda text: "calc: 12*345678"), max_tokens=6)
    assert trajectory.reason is StopReason.MAX_TOKENS
    assert env.num_tool_calls == 0
    assert trajectory.transitions[0].reward_parts["format"] == 0.0


def test_errors_of_tools_are_told_and_the_episode_goes_on(renderer):
    native = renderer.name == "qwen3_instruct"
    wrong = ['{"name": "calc", "arguments": {"expression": "1/0"}}', '{"name": "clac", "arguments": {}}', "calc(1)"]
    lines = [f"<tool_call>\n{one}\n</tool_call>" for one in wrong] if native else ["calc: 1/0", "calc: two", "calc:"]
    left = iter([*lines, "\n".join(lines), "5"])
    env = problems("calculator", {}, renderer, 0).train(0).make_env()
    trajectory = play(env, Scripted(renderer, lambda text: next(left)))
    assert trajectory.reason is StopReason.COMPLETED
    counts = [t.metrics.get("failed_tool_calls") for t in trajectory.transitions]
    assert counts == [1.0, 1.0, 1.0, 3.0, None]
    told = [m.text for m in trajectory.messages[-10:] if m.role != "assistant" and "error: " in m.text]
    assert "ZeroDivisionError" in told[0]
    assert native is ("there is no tool 'clac'; there are calc" in told[1])


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*7", "84"),
        (" 12 * (3 + 4) ", "84"),
        ("1,000 + 1", "1001"),
        ("1/4", "0.25"),
        ("0.1+0.2", "0.3"),
        ("-2**2", "-4"),
        ("2**-2", "0.25"),
        ("12 × 7 ÷ 2", "42"),
        ("10**21 + 1", "1000000000000000000001"),
    ],
)
def test_expressions_are_worked_out_exactly(expression, result):
    assert calc(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "x",
        "1+",
        "__import__('os')",
        "9**9**9",
        "10**64**1*10**64*10**64*10**64",
        "1" * 300,
        "(" * 150,
        "1if 1",
        "()",
    ],
)
def test_what_is_no_expression_is_refused(expression):
    with pytest.raises(ValueError, match=r"."):
        calc(expression)


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-*/(). ", max_size=60))
def test_no_expression_does_more_than_raise_an_error(expression):
    with suppress(ValueError, ZeroDivisionError, OverflowError):
        float(calc(expression))


def test_a_user_message_that_says_nothing_of_tools_stays_as_it_is(qwen3_tokenizer):
    renderer = get_renderer("qwen3_instruct", qwen3_tokenizer)
    env = problems("calculator", {}, renderer, 0).train(0).make_env()
    assert env.with_instructions("hello") == Message("user", "hello")
