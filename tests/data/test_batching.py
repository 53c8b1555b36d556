"""Which examples make up a step: every epoch once, in an order that only the seed decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.data.batching import BatchPlan, split
from crucible_train.errors import ConfigError

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 20))


def plan(num_examples: int, batch_size: int, num_epochs: float = 1.0, max_steps: int | None = None, seed: int = 0):
    return BatchPlan(num_examples, batch_size, num_epochs, max_steps, seed)


@settings(deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 9))
def test_every_epoch_holds_every_example_once_in_batches_of_the_asked_size_but_the_last(sizes, seed):
    made = plan(*sizes, num_epochs=3, seed=seed)
    batches = [made.batch(step) for step in range(made.num_steps)]
    for epoch in range(3):
        of_epoch = batches[epoch * made.steps_per_epoch : (epoch + 1) * made.steps_per_epoch]
        assert sorted(np.concatenate(of_epoch)) == list(range(sizes[0]))
        assert {len(batch) for batch in of_epoch[:-1]} <= {sizes[1]}
        assert len(of_epoch[-1]) == (sizes[0] - 1) % sizes[1] + 1


@settings(deadline=None)
@given(sizes=SIZES, steps=st.lists(st.integers(0, 30), min_size=1))
def test_a_plan_that_is_asked_for_any_step_first_gives_what_an_undisturbed_one_gives(sizes, steps):
    undisturbed, jumping = plan(*sizes, max_steps=31), plan(*sizes, max_steps=31)
    expected = [undisturbed.batch(step) for step in range(31)]
    for step in steps:
        np.testing.assert_array_equal(jumping.batch(step), expected[step])


def test_epochs_and_seeds_differ_in_order():
    orders = [tuple(plan(50, 50, seed=seed, num_epochs=2).batch(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_the_order_of_a_seed_does_not_change_between_versions():
    assert plan(8, 8, seed=3).batch(0).tolist() == [1, 7, 4, 3, 5, 0, 2, 6]


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "num_epochs", "max_steps", "num_steps"),
    [
        (10, 4, 1, None, 3),
        (10, 4, 2, None, 6),
        (10, 4, 0.5, None, 2),  # 1.5 steps, rounded up
        (10, 4, 0.01, None, 1),
        (1000, 10, 0.07, None, 7),  # though 0.07 * 100 is a little more than 7
        (100, 10, 1.1, None, 11),
        (10, 4, 1, 2, 2),
        (10, 4, 1, 50, 50),  # as many epochs as it takes
        (3, 8, 1, None, 1),
    ],
)
def test_steps_follow_epochs_or_the_given_number(num_examples, batch_size, num_epochs, max_steps, num_steps):
    assert plan(num_examples, batch_size, num_epochs, max_steps).num_steps == num_steps


def test_epochs_are_counted_in_parts():
    made = plan(10, 4, 2)
    assert [made.epoch(step) for step in (0, 3, 6)] == [0, 1, 2]
    assert made.epoch(1) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_examples": 0, "batch_size": 1}, "dataset: there is no example to train on"),
        ({"num_examples": 5, "batch_size": 1, "num_epochs": 0}, "train.num_train_epochs: no step would be taken"),
        ({"num_examples": 5, "batch_size": 1, "num_epochs": -1}, "train.num_train_epochs: no step would be taken"),
        ({"num_examples": 5, "batch_size": 1, "max_steps": 0}, "no step would be taken"),
    ],
)
def test_a_plan_that_trains_nothing_is_refused_by_the_field_that_is_wrong(arguments, said):
    with pytest.raises(ConfigError, match=said):
        plan(**arguments)


@settings(deadline=None)
@given(num_rows=st.integers(1, 300), share=st.floats(0, 0.99), seed=st.integers(0, 5))
def test_a_split_is_disjoint_complete_sorted_and_leaves_something_to_train_on(num_rows, share, seed):
    train, held_out = split(num_rows, share, seed)
    assert sorted([*train, *held_out]) == list(range(num_rows))
    assert list(train) == sorted(train)
    assert list(held_out) == sorted(held_out)
    assert len(train) >= 1
    assert (len(held_out) > 0) == (share > 0 and num_rows > 1)
    assert abs(len(held_out) - num_rows * share) <= 1
    np.testing.assert_array_equal(split(num_rows, share, seed)[1], held_out)


def test_the_split_of_a_seed_does_not_change_between_versions():
    assert split(20, 0.2, 0)[1].tolist() == [14, 16, 18, 19]
