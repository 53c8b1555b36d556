"""One answer as both of them read it: the student's tokens and the teacher's, stretch by stretch.

Where both have the same tokenizer an answer is the same ids after another prompt, and a stretch is a token:

    student   [ question | 12 + 7 = 19 <end> ]
    teacher   [ examples  question | 12 + 7 = 19 <end> ]

Else the text is encoded anew, and stretches lie between the boundaries that both tokenisations have.

Axes: T tokens of the student's sequence, U of the teacher's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crucible_train.distill.alignment import NONE, Ints, encoded_ends, stretches, text_ends
from crucible_train.distill.teacher import Reader, Teacher
from crucible_train.errors import ConfigError
from crucible_train.rl.environment import EnvGroupBuilder, StopReason, Trajectory
from crucible_train.rl.sequences import ActionSequence, sequences_of

Tokens = npt.NDArray[np.int32]
_CUT_OFF = frozenset({StopReason.MAX_TOKENS, StopReason.CONTEXT_OVERFLOW, StopReason.TIMEOUT})


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """An answer as the student and as the teacher read it.

    Attributes:
        student_T, teacher_U: ids.
        stretch_T, stretch_U: which stretch of the answer each token belongs to; -1 for none, as in prompts.
        logprobs_T: by whoever wrote the answer, when it was written; 0 where the teacher did.
        written_logprob: the sum of the log-probabilities of what was written, by whoever wrote it.
    """

    student_T: Tokens
    teacher_U: Tokens
    stretch_T: Ints
    stretch_U: Ints
    logprobs_T: npt.NDArray[np.float32]
    written_logprob: float

    @property
    def is_trained_T(self) -> npt.NDArray[np.bool_]:
        """The student's tokens that the teacher has an opinion of."""
        return np.not_equal(self.stretch_T, NONE)

    @property
    def num_trained(self) -> int:
        """How many there are."""
        return int(self.is_trained_T.sum())

    @property
    def place_T(self) -> Ints:
        """Where the student's token stands among the teacher's, if stretches are tokens; 0 where nowhere."""
        where = np.flatnonzero(self.stretch_U != NONE)
        return np.where(self.is_trained_T, where[np.minimum(self.stretch_T, where.size - 1)] if where.size else 0, 0)


async def first_prompt(builder: EnvGroupBuilder) -> Tokens:
    """What a problem first asks."""
    (env,) = await builder.make_envs(1)
    try:
        return (await env.initial_turn()).prompt.to_array()
    finally:
        await env.close()


def pairs_of(
    trajectory: Trajectory, teacher: Teacher, student: Reader, read: Tokens, *, by_teacher: bool
) -> list[Pair]:
    """The answers of an episode as both read them.

    Args:
        trajectory: what was written.
        teacher: by whom, or for whom.
        student: the other one.
        read: the first prompt of whoever did not write it.
        by_teacher: whether the teacher wrote it.

    Raises:
        ConfigError: the two cannot be matched.
    """
    if not trajectory.num_sampled_tokens:
        return []
    written = trajectory.transitions[0].prompt.to_array()
    is_same = np.array_equal(written, read) and teacher.shares_ids and teacher.shares_format
    if not is_same and not teacher.shares_format and len(trajectory.transitions) > 1:
        raise ConfigError(
            f"{teacher.name}: its chat format is not the student's, which is supported for episodes of one answer"
        )
    writer, reader = (teacher.reader, student) if by_teacher else (student, teacher.reader)
    is_cut_off = trajectory.reason in _CUT_OFF
    pairs = []
    for sequence in sequences_of(trajectory):
        if is_same:
            found = (numbers := _numbers(sequence)), sequence.tokens_T, numbers
        elif teacher.shares_ids:
            found = _moved(sequence, written, read, teacher, writer.stop, reader.stop)
        else:
            found = _encoded_anew(sequence, written.size, read, writer, reader, is_cut_off=is_cut_off)
        pairs.append(_pair(sequence, *found, by_teacher=by_teacher))
    return pairs


def _numbers(sequence: ActionSequence) -> Ints:
    """A stretch a sampled token."""
    return np.where(sequence.is_action_T, np.cumsum(sequence.is_action_T) - 1, NONE)


def _moved(
    sequence: ActionSequence,
    written: Tokens,
    read: Tokens,
    teacher: Teacher,
    writer_stop: int | None,
    reader_stop: int | None,
) -> tuple[Ints, Tokens, Ints]:
    """The same ids after another first prompt."""
    num, tokens = written.size, sequence.tokens_T
    if not np.array_equal(tokens[:num], written):
        raise ConfigError(
            f"{teacher.name}: it reads something before the conversation, and this chat format rewrites what was said: "
            "take an environment of one turn, or a teacher that reads what the student does"
        )
    rest = tokens[num:].copy()
    if reader_stop is not None and writer_stop != reader_stop and rest[-1] == writer_stop:
        rest[-1] = reader_stop
    numbers = _numbers(sequence)
    return numbers, np.concatenate([read, rest]), np.concatenate([np.full(read.size, NONE), numbers[num:]])


def _encoded_anew(
    sequence: ActionSequence, start: int, read: Tokens, writer: Reader, reader: Reader, *, is_cut_off: bool
) -> tuple[Ints, Tokens, Ints]:
    """The text of the answer in other ids; nothing of it is compared where it holds control tokens."""
    ids = sequence.tokens_T[start:].tolist()
    ends_itself = bool(ids) and ids[-1] == writer.stop
    ids = ids[:-1] if ends_itself else ids
    text, left_ends = text_ends(ids, writer.renderer.tokenizer)
    others, right_ends = encoded_ends(text, reader.renderer.tokenizer) if text else ([], [])
    left, right = stretches(left_ends, right_ends)
    holds_control = bool(set(ids) & set(writer.renderer.tokenizer.control_tokens.values()))
    if holds_control:
        left, right = np.full_like(left, NONE), np.full_like(right, NONE)
    elif is_cut_off and left.size:  # where an answer was cut says nothing of how its text would be divided
        last = left.max()
        left, right = np.where(left == last, NONE, left), np.where(right == last, NONE, right)
    others = list(others)
    if ends_itself:
        assert reader.stop is not None
        number = NONE if holds_control else max(left.max(initial=NONE), right.max(initial=NONE)) + 1
        left, right, others = np.append(left, number), np.append(right, number), [*others, reader.stop]
    return (
        np.concatenate([np.full(start, NONE), left]),
        np.concatenate([read, np.asarray(others, np.int32)]),
        np.concatenate([np.full(read.size, NONE), right]),
    )


def _pair(sequence: ActionSequence, mine: Ints, others: Tokens, theirs: Ints, *, by_teacher: bool) -> Pair:
    total = float(sequence.logprobs_T[mine != NONE].sum(dtype=np.float64))
    if by_teacher:
        return Pair(others, sequence.tokens_T, theirs, mine, np.zeros(others.size, np.float32), total)
    return Pair(sequence.tokens_T, others, mine, theirs, sequence.logprobs_T, total)


def sums(values: npt.NDArray[np.float32] | Sequence[float], stretch: Ints) -> npt.NDArray[np.float64]:
    """The sum over each stretch."""
    inside = stretch != NONE
    return np.asarray(np.bincount(stretch[inside], np.asarray(values, np.float64)[inside]), np.float64)
