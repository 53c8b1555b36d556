"""Sums: what is asked, how answers are judged."""

import re
from collections import Counter

import pytest

from crucible_train.errors import ConfigError
from crucible_train.rl.environment import Env, StopReason
from crucible_train.rl.environments import options_of, problems, read_options
from tests.rl.conftest import Scripted, play, play_group


def solve(text: str) -> str:
    left, operation, right = re.findall(r"What is (-?\d+) ([-+*]) (-?\d+)\?", text)[-1]
    found = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
    return str(found[operation])


def env_of(renderer, options=(), index=0):
    made = problems("arithmetic", dict(options), renderer, 0).train(index)
    return made.make_env()


def test_a_right_answer_is_worth_one(smollm2):
    env = env_of(smollm2, {"num_shots": 0})
    assert isinstance(env, Env)
    trajectory = play(env, Scripted(smollm2, solve))
    assert trajectory.reward == 1.0
    assert trajectory.reason is StopReason.COMPLETED
    assert trajectory.transitions[0].reward_parts == {"correct": 1.0, "format": 1.0}
    assert [message.role for message in trajectory.messages] == ["user", "assistant"]
    assert trajectory.messages[1].text == solve(trajectory.messages[0].text)


@pytest.mark.parametrize(
    ("said", "correct", "has_format"),
    [
        ("{}", 1, 1),
        (" {}.\n", 1, 1),
        ("It is {}.", 1, 0),
        ("{} or {}", 1, 0),
        ("1{}", 0, 1),
        ("-9999", 0, 1),
        ("{} is right, not 5", 0, 0),
        ("", 0, 0),
        ("no", 0, 0),
    ],
)
def test_reward_is_format_and_correctness(smollm2, said, correct, has_format):
    client = Scripted(smollm2, lambda text: said.replace("{}", solve(text)))
    [transition] = play(env_of(smollm2, {"format_coef": 0.25}), client).transitions
    assert transition.reward_parts == {"correct": correct, "format": has_format}
    assert transition.reward == 0.25 * (has_format - 1) + correct


def test_a_sentence_that_ends_with_the_number_may_be_allowed(smollm2):
    env = env_of(smollm2, {"answer_alone": False})
    assert play(env, Scripted(smollm2, lambda text: f"The sum is {solve(text)}.")).reward == 1.0
    env = env_of(smollm2, {"answer_alone": False})
    assert play(env, Scripted(smollm2, lambda text: f"{solve(text)} it is")).reward == 0.9


def test_an_answer_that_is_cut_off_has_no_format(smollm2):
    trajectory = play(env_of(smollm2), Scripted(smollm2, lambda text: solve(text) + " and"), max_tokens=2)
    assert trajectory.reason is StopReason.MAX_TOKENS
    assert trajectory.transitions[0].reward_parts["format"] == 0.0


def test_operands_operations_and_names_follow_the_options(smollm2):
    made = problems(
        "arithmetic", {"operations": ["+", "*"], "min_operand": -3, "max_operand": 12, "num_shots": 0}, smollm2, 0
    )
    found = [re.fullmatch(r"arithmetic: (-?\d+) ([+*]) (-?\d+)", made.train(i).problem) for i in range(400)]
    operands = {int(one[place]) for one in found for place in (1, 3)}
    assert operands == set(range(-3, 13))
    counts = Counter(one[2] for one in found)
    assert min(counts.values()) > 150
    assert made.train(0).tags[0] == "arithmetic"
    assert {made.train(i).tags[1] for i in range(20)} == {"arithmetic/+", "arithmetic/*"}


def test_a_held_out_sum_is_not_trained_the_other_way_round(smollm2):
    made = problems("arithmetic", {"max_operand": 9, "num_held_out": 30}, smollm2, 0)
    held_out = {frozenset(re.findall(r"\d+", one.problem)) for one in made.held_out}
    assert len(held_out) == 30
    assert not held_out & {frozenset(re.findall(r"\d+", made.train(i).problem)) for i in range(500)}


def test_what_is_shown_solved_is_never_asked(smollm2):
    made = problems("arithmetic", {"max_operand": 3, "num_shots": 2, "num_held_out": 3}, smollm2, 0)
    client = Scripted(smollm2, solve)
    play(made.train(0).make_env(), client)
    shown = {frozenset(pair) for pair in re.findall(r"What is (\d+) \+ (\d+)\?", client.asked[0][0])[:-1]}
    assert 1 <= len(shown) <= 2
    asked = [*(made.train(index) for index in range(200)), *made.held_out]
    assert not shown & {frozenset(re.findall(r"\d+", one.problem)) for one in asked}


def test_solved_examples_come_first(smollm2):
    client = Scripted(smollm2, solve)
    assert play(env_of(smollm2, {"num_shots": 2}), client).reward == 1.0
    [(text, _)] = client.asked
    assert text.count("What is") == 3
    assert text.count("<|im_start|>assistant\n") == 3


def test_a_group_of_one_problem_asks_it_of_all(smollm2):
    client = Scripted(smollm2, solve)
    group = play_group(problems("arithmetic", {}, smollm2, 3).held_out[0], client, 4)
    assert group is not None
    assert group.rewards_G == (1.0,) * 4
    assert len({text for text, _ in client.asked}) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_operand": -1}, "max_operand: is below min_operand"),
        ({"operations": []}, "operations: must be a list of 1 or more"),
        ({"operations": ["/"]}, r"operations\[0\]: must be one of"),
        ({"max_operant": 3}, "max_operant: unknown; did you mean max_operand"),
        ({"max_operand": 2, "num_held_out": 100}, "num_held_out: 6 problems are held out or shown"),
    ],
)
def test_wrong_options_are_named(smollm2, options, told):
    with pytest.raises(ConfigError, match=told):
        problems("arithmetic", options, smollm2, 0)


def test_an_unknown_name_is_told_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"'arithmetics' is unknown; known are .*arithmetic"):
        options_of("arithmetics")


def test_options_may_be_read_before(smollm2):
    options = read_options("arithmetic", {"max_operand": 5, "num_held_out": 3})
    assert options.max_operand == 5
    assert problems("arithmetic", options, smollm2, 0).train(0).problem
