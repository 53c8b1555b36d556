"""What becomes of turns: one sequence where they extend one another, and what stands where in a datum."""

import numpy as np
import pytest

from crucible_train.rl.environment import StopReason, Trajectory, Transition
from crucible_train.rl.sequences import policy_datum, sequences_of, with_input
from crucible_train.types import ModelInput, TokensWithLogprobs
from tests.rl.made import episode, turn

FIRST = turn([1, 2], [3, 4], [-0.1, -0.2])
EXTENDS = turn([1, 2, 3, 4, 5], [6, 7], [-0.3, -0.4])


def values(datum, name: str) -> list[float]:
    return datum.loss_fn_inputs[name].tolist()


def test_turns_that_extend_one_another_are_one_sequence():
    (found,) = sequences_of(episode(FIRST, EXTENDS, turn([1, 2, 3, 4, 5, 6, 7], [8], [-0.5])))
    assert found.tokens_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.is_action_T.tolist() == [False, False, True, True, False, True, True, True]
    assert found.logprobs_T == pytest.approx([0, 0, -0.1, -0.2, 0, -0.3, -0.4, -0.5])
    assert found.num_actions == 5


@pytest.mark.parametrize(
    "prompt",
    [[1, 2, 9, 4, 5], [1, 2, 3], [2, 3, 4, 5], [9]],
    ids=["an answer rewritten", "shorter", "its beginning cut off", "another"],
)
def test_a_turn_that_does_not_extend_the_last_is_a_sequence_of_its_own(prompt: list[int]):
    first, second = sequences_of(episode(FIRST, turn(prompt, [6, 7])))
    assert first.tokens_T.tolist() == [1, 2, 3, 4]
    assert second.tokens_T.tolist() == [*prompt, 6, 7]
    assert second.is_action_T.tolist() == [False] * len(prompt) + [True] * 2


def test_what_comes_after_a_split_may_extend_what_is_before_it_no_more():
    """The third turn extends the second, not the first."""
    first, second = sequences_of(episode(FIRST, turn([9], [8]), turn([9, 8, 7], [6])))
    assert first.tokens_T.tolist() == [1, 2, 3, 4]
    assert second.tokens_T.tolist() == [9, 8, 7, 6]
    assert second.is_action_T.tolist() == [False, True, False, True]


def test_no_turns_are_no_sequences():
    assert sequences_of(Trajectory((), StopReason.TIMEOUT)) == []


def test_a_datum_is_shifted_by_one_and_all_stands_at_the_targets():
    """tokens       1    2    3    4    5    6    7
    sampled                   x    x         x    x
    targets        2    3    4    5    6    7         one ahead of the input 1 2 3 4 5 6
    """
    (sequence,) = sequences_of(episode(FIRST, EXTENDS))
    datum = policy_datum(sequence, np.array([9, 9, 1, 2, 9, 3, 4], np.float32), 0.25)
    assert datum.model_input.to_ints() == [1, 2, 3, 4, 5, 6]
    assert values(datum, "target_tokens") == [2, 3, 4, 5, 6, 7]
    assert values(datum, "weights") == [0, 0.25, 0.25, 0, 0.25, 0.25]
    assert values(datum, "logprobs") == pytest.approx([0, -0.1, -0.2, 0, -0.3, -0.4])
    assert values(datum, "advantages") == [0, 1, 2, 0, 3, 4]


def test_another_input_leaves_the_rest_and_the_datum_it_came_from():
    (sequence,) = sequences_of(episode(FIRST))
    datum = policy_datum(sequence, np.ones(4, np.float32), 1.0)
    changed = with_input(datum, "advantages", np.array([5, 6, 7], np.float32))
    assert values(changed, "advantages") == [5, 6, 7]
    assert values(datum, "advantages") == [0, 1, 1]
    assert values(changed, "logprobs") == values(datum, "logprobs")


def test_an_answer_without_logprobs_cannot_be_trained_on():
    action = TokensWithLogprobs((3,), None, "stop")
    bare = Transition(ModelInput.from_ints([1]), action, 0.0, 0)
    with pytest.raises(ValueError, match="without log-probabilities"):
        sequences_of(episode(bare))


def test_merged_turns_have_the_gradient_of_turns_apart(gradient_of):
    """The loss of each turn alone, its prompt read anew, is that of the one sequence; so is the gradient."""
    turns = [turn([1, 8], [2, 9]), turn([1, 8, 2, 9, 8], [3, 9]), turn([1, 8, 2, 9, 8, 3, 9, 8], [4])]
    merged = sequences_of(episode(*turns))
    apart = [sequence for one in turns for sequence in sequences_of(episode(one))]
    assert (len(merged), len(apart)) == (1, 3)

    def datums(sequences):
        return [policy_datum(one, np.full(one.tokens_T.size, 0.7, np.float32), 0.2) for one in sequences]

    (loss, gradient), (loss_apart, gradient_apart) = gradient_of(datums(merged)), gradient_of(datums(apart))
    assert loss == pytest.approx(loss_apart, rel=1e-5)
    assert np.abs(gradient).max() > 1e-3
    assert gradient == pytest.approx(gradient_apart, rel=1e-4, abs=1e-6)
