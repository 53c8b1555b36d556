"""From trajectories to what is trained: turns that extend one another become one sequence.

    turn 1   [ prompt | answer ]
    turn 2   [ prompt   answer   more prompt | answer ]      extends turn 1: the same sequence, one pass
    turn 3   [ another prompt | answer ]                     does not: a sequence of its own

Axes: T tokens of a sequence, N = T - 1 positions of a datum.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crucible_train.rl.environment import Trajectory, Transition
from crucible_train.types import Datum, ModelInput, TensorData

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ActionSequence:
    """What the policy read and wrote, as one stretch of tokens.

    Attributes:
        tokens_T: ids, int32.
        logprobs_T: of the sampled tokens, when they were sampled; 0 elsewhere.
        is_action_T: which tokens were sampled.
    """

    tokens_T: npt.NDArray[np.int32]
    logprobs_T: Floats
    is_action_T: npt.NDArray[np.bool_]

    @property
    def num_actions(self) -> int:
        """How many tokens were sampled."""
        return int(self.is_action_T.sum())


def sequences_of(trajectory: Trajectory) -> list[ActionSequence]:
    """The sequences of a trajectory, as few as its prompts allow.

    Raises:
        ValueError: an answer came without its log-probabilities.
    """
    found: list[ActionSequence] = []
    for transition in trajectory.transitions:
        before = found[-1] if found else None
        if before is not None and _extends(transition, before.tokens_T):
            found[-1] = _joined(before, _sequence(transition, before.tokens_T.size))
        else:
            found.append(_sequence(transition, 0))
    return found


def policy_datum(sequence: ActionSequence, advantages_T: Floats, weight: float) -> Datum:
    """A sequence as the losses of reinforcement learning read it, every sampled token weighing ``weight``.

    ``advantages_T`` stands with the tokens, as everything of the sequence; the datum is shifted by one.
    """
    is_action_N = sequence.is_action_T[1:]
    return Datum(
        ModelInput.from_ints(sequence.tokens_T[:-1]),
        {
            "target_tokens": TensorData(sequence.tokens_T[1:].astype(np.int64), "int64"),
            "weights": TensorData(is_action_N * np.float32(weight), "float32"),
            "logprobs": TensorData(sequence.logprobs_T[1:], "float32"),
            "advantages": TensorData(advantages_T[1:] * is_action_N, "float32"),
        },
    )


def with_input(datum: Datum, name: str, values_N: Floats) -> Datum:
    """The datum with one input more, or another in its place."""
    return Datum(datum.model_input, {**datum.loss_fn_inputs, name: TensorData(values_N, "float32")})


def _extends(transition: Transition, tokens_T: npt.NDArray[np.int32]) -> bool:
    prompt = transition.prompt.to_array()
    return prompt.size >= tokens_T.size and bool(np.array_equal(prompt[: tokens_T.size], tokens_T))


def _sequence(transition: Transition, num_known: int) -> ActionSequence:
    """Prompt and answer, less the tokens that stand in the sequence already."""
    prompt, action = transition.prompt.to_array()[num_known:], transition.action
    if action.logprobs is None:
        raise ValueError("an answer without log-probabilities cannot be trained on")
    num_sampled = len(action.tokens)
    return ActionSequence(
        np.concatenate([prompt, np.asarray(action.tokens, np.int32)]),
        np.concatenate([np.zeros(prompt.size, np.float32), np.asarray(action.logprobs, np.float32)]),
        np.arange(prompt.size + num_sampled) >= prompt.size,
    )


def _joined(left: ActionSequence, right: ActionSequence) -> ActionSequence:
    return ActionSequence(
        np.concatenate([left.tokens_T, right.tokens_T]),
        np.concatenate([left.logprobs_T, right.logprobs_T]),
        np.concatenate([left.is_action_T, right.is_action_T]),
    )
