"""From answers to what the student is trained on: a loss, its datums, and the divergence from the teacher.

    reverse_kl      A_t = log p_teacher - log p_student of the stretch that t belongs to, when it was sampled
    divergence      the teacher is given with the loss; the datum says what it reads
    top_k           targets: the teacher's K likeliest tokens, weighed by their probabilities
    cross_entropy   targets: what the teacher wrote

Every trained token weighs 1 / (number of trained tokens of the batch).

Axes: D datums, T tokens of the student's sequence, U of the teacher's, N = T - 1 positions, K targets of a position.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crucible_train.distill.config import LessonConfig
from crucible_train.distill.pairs import Pair, sums
from crucible_train.distill.teacher import Teacher
from crucible_train.errors import ServerError
from crucible_train.ports import StepOutput
from crucible_train.rl.sequences import ActionSequence, policy_datum
from crucible_train.types import CrossEntropy, Datum, Divergence, ImportanceSampling, Loss, ModelInput, TensorData

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one teacher teaches of a batch. ``divergence`` is the sum over trained tokens, from what training gives."""

    loss: Loss
    datums_D: Sequence[Datum]
    divergence: Callable[[StepOutput], float]


async def lesson(config: LessonConfig, teacher: Teacher, pairs: Sequence[Pair], num_tokens: int) -> Lesson:
    """Have a teacher make its lesson of some answers; ``num_tokens`` is how many are trained on in the whole batch."""
    match config.objective:
        case "reverse_kl":
            return await _reverse_kl(config, teacher, pairs, 1 / num_tokens)
        case "divergence":
            return _divergence(config, teacher, pairs, 1 / num_tokens)
        case "top_k":
            return await _top_k(config, teacher, pairs, 1 / num_tokens)
        case "cross_entropy":
            return _cross_entropy(pairs, 1 / num_tokens)


async def teacher_logprobs(teacher: Teacher, pairs: Sequence[Pair]) -> list[Floats]:
    """The teacher's log-probability of each of its tokens, (U,) an answer; 0 for the first."""
    asked = [teacher.client.compute_logprobs(ModelInput.from_ints(pair.teacher_U)) for pair in pairs]
    return [np.array([0.0, *found[1:]], np.float32) for found in await asyncio.gather(*asked)]


def log_ratios(pair: Pair, teachers_U: Floats) -> tuple[Floats, float]:
    """``log p_teacher - log p_student`` of the stretch of each token, and the sum over stretches."""
    ratio = sums(teachers_U, pair.stretch_U) - sums(pair.logprobs_T, pair.stretch_T)
    out_T = np.zeros(pair.student_T.size, np.float32)
    out_T[pair.is_trained_T] = ratio[pair.stretch_T[pair.is_trained_T]]
    return out_T, float(ratio.sum())


async def _reverse_kl(config: LessonConfig, teacher: Teacher, pairs: Sequence[Pair], weight: float) -> Lesson:
    """The gradient of KL(student || teacher) at each token, from one sample of it: REINFORCE (Williams, 1992).

    No baseline is taken away: with one, tokens on which both agree would still be moved.
    """
    datums, total = [], 0.0
    for pair, teachers_U in zip(pairs, await teacher_logprobs(teacher, pairs), strict=True):
        ratio_T, ratio = log_ratios(pair, teachers_U)
        sequence = ActionSequence(pair.student_T, pair.logprobs_T, pair.is_trained_T)
        datums.append(policy_datum(sequence, discounted(ratio_T, pair.stretch_T, config.discount), weight))
        total -= ratio
    return Lesson(ImportanceSampling(), datums, lambda _output: total)


def discounted(ratio_T: Floats, stretch_T: npt.NDArray[np.int64], discount: float) -> Floats:
    """``sum_{s >= t} discount^(s - t) ratio_s`` over stretches s, for the tokens of each."""
    if not discount:
        return ratio_T
    out_T, after, last = np.zeros_like(ratio_T), 0.0, -1
    for place in reversed(np.flatnonzero(stretch_T >= 0).tolist()):
        if stretch_T[place] != last:
            last = int(stretch_T[place])
            after = float(ratio_T[place]) + discount * after
        out_T[place] = after
    return out_T


def _divergence(config: LessonConfig, teacher: Teacher, pairs: Sequence[Pair], weight: float) -> Lesson:
    loss = Divergence(
        teacher=teacher.client,
        beta=config.beta,
        temperature=config.temperature,
        cross_entropy_coef=(1 - config.alpha) / config.alpha,
    )
    datums = [_datum(pair, weight * config.alpha, with_teacher=True) for pair in pairs]
    return Lesson(loss, datums, lambda output: output.metrics["divergence"] / (weight * config.alpha))


async def _top_k(config: LessonConfig, teacher: Teacher, pairs: Sequence[Pair], weight: float) -> Lesson:
    asked = [teacher.client.top_logprobs(ModelInput.from_ints(pair.teacher_U), config.top_k) for pair in pairs]
    tables = [_soft_targets(pair, top, config) for pair, top in zip(pairs, await asyncio.gather(*asked), strict=True)]
    datums = [
        Datum(
            ModelInput.from_ints(pair.student_T[:-1]),
            {
                "target_tokens": TensorData(ids[1:], "int64", ids[1:].shape),
                "weights": TensorData(shares[1:] * np.float32(weight), "float32", shares[1:].shape),
            },
        )
        for pair, (ids, shares) in zip(pairs, tables, strict=True)
    ]

    def divergence(output: StepOutput) -> float:
        """KL from the teacher's K likeliest tokens to the student's probabilities of them."""
        total = 0.0
        for (_, shares), found in zip(tables, output.logprobs_D, strict=True):
            p = shares[1:, : config.top_k].astype(np.float64) / config.alpha
            logs = np.log(np.where(p > 0, p, 1))
            total += float((p * (logs - found[:, : config.top_k])).sum())
        return total

    return Lesson(CrossEntropy(), datums, divergence)


def _soft_targets(
    pair: Pair, top: Sequence[Sequence[tuple[int, float]] | None], config: LessonConfig
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Ids and shares (T, K + 1) of each token: the teacher's likeliest, and last the token itself."""
    ids = np.zeros((pair.student_T.size, config.top_k + 1), np.int64)
    shares = np.zeros(ids.shape, np.float32)
    place_T = pair.place_T
    for place in np.flatnonzero(pair.is_trained_T).tolist():
        told = top[place_T[place]]
        if not told:
            raise ServerError("the teacher did not tell the likeliest tokens of a position")
        scores = np.array([score for _, score in told]) / config.temperature
        likely = np.exp(scores - scores.max())
        ids[place, : likely.size] = [token for token, _ in told]
        shares[place, : likely.size] = config.alpha * likely / likely.sum()
        ids[place, -1], shares[place, -1] = pair.student_T[place], 1 - config.alpha
    return ids, shares


def _cross_entropy(pairs: Sequence[Pair], weight: float) -> Lesson:
    def divergence(output: StepOutput) -> float:
        """KL(teacher || student) from one sample of it: what the teacher wrote."""
        students = sum(float(found.sum(dtype=np.float64)) for found in output.logprobs_D)
        return sum(pair.written_logprob for pair in pairs) - students

    return Lesson(CrossEntropy(), [_datum(pair, weight, with_teacher=False) for pair in pairs], divergence)


def _datum(pair: Pair, weight: float, *, with_teacher: bool) -> Datum:
    inputs = {
        "target_tokens": TensorData(pair.student_T[1:].astype(np.int64), "int64"),
        "weights": TensorData(pair.is_trained_T[1:] * np.float32(weight), "float32"),
    }
    if not with_teacher:
        return Datum(ModelInput.from_ints(pair.student_T[:-1]), inputs)
    # what predicts a token stands one before it, on either side
    inputs["teacher_positions"] = TensorData(np.maximum(pair.place_T[1:] - 1, 0), "int64")
    return Datum(ModelInput.from_ints(pair.student_T[:-1]), inputs, ModelInput.from_ints(pair.teacher_U[:-1]))
