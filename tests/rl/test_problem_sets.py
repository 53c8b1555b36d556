"""Problems of a set: the same on any day, and never both trained and held out."""

import pytest

from crucible_train.errors import ConfigError
from crucible_train.rl.environment import EnvGroupBuilder
from crucible_train.rl.problem_set import DrawnProblems, FiniteProblems, Problem, ProblemSet


def build(item) -> Problem:
    return Problem(f"problem {item}", lambda: pytest.fail("nothing is played here"))


def drawn(num_held_out=5, seed=0, num=20) -> DrawnProblems:
    return DrawnProblems(lambda one: one % num, lambda item: item, build, num_held_out, seed)


def finite(num=20, held_out=5, seed=0) -> FiniteProblems:
    return FiniteProblems([*range(num), *range(num)], lambda item: item, build, held_out, seed)


def names(builders) -> list[str]:
    return [builder.problem for builder in builders]


@pytest.mark.parametrize("make", [drawn, finite])
def test_problems_follow_from_seed_and_index_alone(make):
    def some(problems, places):
        return {place: problems.train(place).problem for place in places}

    first = make()
    assert isinstance(first, ProblemSet)
    assert isinstance(first.train(0), EnvGroupBuilder)
    forwards, backwards = some(first, range(40)), some(make(), reversed(range(40)))
    assert forwards == backwards
    assert names(first.held_out) == names(make().held_out)
    assert some(make(seed=1), range(40)) != forwards
    assert names(make(seed=1).held_out) != names(first.held_out)


@pytest.mark.parametrize("make", [drawn, finite])
def test_what_is_held_out_is_never_trained(make):
    problems = make()
    held_out = set(names(problems.held_out))
    assert len(held_out) == len(problems.held_out) == 5
    trained = {problems.train(index).problem for index in range(300)}
    assert not held_out & trained
    assert len(trained) == 15


def test_every_pass_over_a_finite_set_gives_each_once_in_another_order():
    problems = finite()
    assert problems.num_train == 15
    passes = [[problems.train(15 * epoch + place).problem for place in range(15)] for epoch in range(3)]
    assert all(sorted(one) == sorted(passes[0]) and len(set(one)) == 15 for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_others_may_be_held_out_and_are_then_taken_from_training():
    problems = finite(num=6, held_out=[4, 5, 99])
    assert names(problems.held_out) == ["problem 4", "problem 5", "problem 99"]
    assert problems.num_train == 4


def test_at_most_half_of_a_list_is_held_out():
    found = finite(held_out=20)
    assert (found.num_train, len(found.held_out)) == (10, 10)


def test_nothing_left_to_train_on_is_refused():
    with pytest.raises(ConfigError, match="num_held_out: all of the 20 different problems"):
        finite(held_out=list(range(20)))
    with pytest.raises(ConfigError, match="num_held_out: 20 problems are held out or shown"):
        drawn(num_held_out=21)
