"""What is measured of preferences: while training for nothing, since a step's log-probabilities are there.

reward      beta sum (logp - reference_logprobs); without a reference beta times the mean of logp; of a reward model
            what its head gives, and nothing is measured of log-probabilities
margin      the chosen reward less the rejected one; of a completion alone, how far its reward is on its side of beta z
accuracy    1 where the margin is above 0, 1/2 where it is 0, 0 below
logprob     sum of logp over the completion
kl          mean over completion tokens of d^2 / 2, d = logp - reference_logprobs: how far the policy has gone
            from the reference on these tokens, the k2 estimate of the divergence. (k3, exp(-d) - 1 + d, is of use only
            where the policy wrote the tokens: one token of the data that it has given up on would drown the mean.)

Axes: S positions of a sequence that count.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_train import files
from crucible_train.data.preference_tables import RenderedPreference
from crucible_train.ports import TrainingClient
from crucible_train.preference.datums import mismatched, rewarded_datum, side_datum
from crucible_train.preference.reference import ReferenceLogprobs
from crucible_train.types import KTO, AnyPreferenceLoss, BradleyTerry, CrossEntropy, Datum, PreferenceLoss

Floats = npt.NDArray[np.float32]
References = Sequence[ReferenceLogprobs]
LossesOf = Callable[[AnyPreferenceLoss, Sequence[Datum], Sequence[Floats]], npt.NDArray[np.float64]]
"""The loss of each pair, or of each datum where the loss is over single ones."""

FIGURES = ("accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob", "kl")
"""What ``Measured`` holds besides the loss, in the order in which it is shown."""
_PREFERENCES_A_PASS = 32


@dataclass(frozen=True, slots=True)
class Measured:
    """One preference; None where there is no such side, no reference, or the loss was not asked for by preference."""

    row: int
    accuracy: float
    margin: float
    chosen_reward: float | None
    rejected_reward: float | None
    chosen_logprob: float | None
    rejected_logprob: float | None
    kl: float | None
    num_tokens: int
    loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As a line of ``results.jsonl``."""
        return {"kind": "preference"} | {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class PreferenceSet:
    """Preferences to train on or to measure, and what the reference gives them where the loss reads it."""

    preferences: Sequence[RenderedPreference]
    references: References | None

    def __len__(self) -> int:
        """How many there are."""
        return len(self.preferences)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some preferences of a set, by their numbers."""

    of: PreferenceSet
    indices: Sequence[int]

    @property
    def num_tokens(self) -> int:
        """Tokens of all their sequences; a prompt is counted once a preference."""
        found = [self.of.preferences[index] for index in self.indices]
        prompts = [min(side.num_prompt for _, side in one.sides) for one in found]
        return sum(p + sum(s.tokens_T.size - p for _, s in one.sides) for p, one in zip(prompts, found, strict=True))

    def datums(self, loss: AnyPreferenceLoss, reference_point: float | None) -> list[Datum]:
        """Their sides, scaled so that the summed loss is a mean over pairs, or over sequences for KTO."""
        found = [(index, self.of.preferences[index]) for index in self.indices]
        if isinstance(loss, BradleyTerry):
            return [rewarded_datum(side, 1 / len(found)) for _, one in found for _, side in one.sides]
        num = sum(len(one.sides) for _, one in found) if isinstance(loss, KTO) else len(found)
        return [
            side_datum(
                side,
                1 / num,
                number=number,
                pair=pair,
                reference_S=self.of.references[index].of_side(number) if self.of.references is not None else None,
                reference_point=reference_point,
            )
            for pair, (index, one) in enumerate(found)
            for number, side in one.sides
        ]

    async def reference_point(self, client: TrainingClient, loss: AnyPreferenceLoss) -> float | None:
        """What KTO measures from: how much likelier mismatched completions have become, 0 at least; else None."""
        if not isinstance(loss, KTO):
            return None
        assert self.of.references is not None
        ratios: list[float] = []
        for start in range(0, len(self.indices), _PREFERENCES_A_PASS):
            some = self.indices[start : start + _PREFERENCES_A_PASS]
            sides = [mismatched(self.of.preferences, index) for index in some]
            output = await client.forward([side_datum(side) for side in sides], CrossEntropy())
            for index, side, logprobs_N in zip(some, sides, output.logprobs_D, strict=True):
                reference_S = self.of.references[index].mismatched
                assert reference_S is not None
                ratios.append(float((logprobs_N[side.weights_T[1:] != 0] - reference_S).sum(dtype=np.float64)))
        return max(0.0, float(np.mean(ratios)))

    def measured(
        self,
        loss: AnyPreferenceLoss,
        logprobs_D: Sequence[Floats],
        reference_point: float | None,
        losses: Sequence[float] | None = None,
    ) -> list[Measured]:
        """The figures of each, from what a pass over its datums gave; ``losses`` holds one a preference."""
        of_side, found = iter(logprobs_D), []
        for place, index in enumerate(self.indices):
            one, reference = self.of.preferences[index], None
            loss_of_it = None if losses is None else float(losses[place])
            if isinstance(loss, BradleyTerry):
                rewards = {number: float(next(of_side)[-1]) for number, _ in one.sides}
                found.append(_rewarded(index, one, rewards, loss_of_it))
                continue
            if self.of.references is not None:
                reference = self.of.references[index]
            sides = {number: next(of_side)[side.weights_T[1:] != 0] for number, side in one.sides}
            found.append(_measured(index, sides, reference, loss, reference_point or 0.0, loss_of_it))
        return found


def _measured(
    row: int,
    sides: Mapping[int, Floats],
    reference: ReferenceLogprobs | None,
    loss: PreferenceLoss,
    reference_point: float,
    loss_of_it: float | None,
) -> Measured:
    rewards, differences = {}, []
    for number, logprobs_S in sides.items():
        known_S = None if reference is None else reference.of_side(number)
        if known_S is None:
            rewards[number] = loss.beta * float(logprobs_S.mean(dtype=np.float64))
        else:
            differences.append((logprobs_S - known_S).astype(np.float64))
            rewards[number] = loss.beta * float(differences[-1].sum())
    if len(sides) == 2:
        margin = rewards[1] - rewards[-1]
    else:
        (number,) = sides
        margin = number * (rewards[number] - loss.beta * reference_point)
    d_S = np.concatenate(differences) if differences else None
    totals = {number: float(logprobs_S.sum(dtype=np.float64)) for number, logprobs_S in sides.items()}
    return Measured(
        row=row,
        accuracy=_accuracy(margin),
        margin=margin,
        chosen_reward=rewards.get(1),
        rejected_reward=rewards.get(-1),
        chosen_logprob=totals.get(1),
        rejected_logprob=totals.get(-1),
        kl=None if d_S is None else float(0.5 * np.square(d_S).mean()),
        num_tokens=sum(logprobs_S.size for logprobs_S in sides.values()),
        loss=loss_of_it,
    )


def _rewarded(
    row: int, preference: RenderedPreference, rewards: Mapping[int, float], loss_of_it: float | None
) -> Measured:
    """The figures of a pair that a reward model was shown."""
    margin = rewards[1] - rewards[-1]
    return Measured(
        row=row,
        accuracy=_accuracy(margin),
        margin=margin,
        chosen_reward=rewards[1],
        rejected_reward=rewards[-1],
        chosen_logprob=None,
        rejected_logprob=None,
        kl=None,
        num_tokens=sum(int(np.count_nonzero(side.weights_T[1:])) for _, side in preference.sides),
        loss=loss_of_it,
    )


def _accuracy(margin: float) -> float:
    return float(margin > 0) + 0.5 * float(margin == 0)


async def measure(
    client: TrainingClient, held_out: PreferenceSet, loss: AnyPreferenceLoss, losses_of: LossesOf
) -> list[Measured]:
    """Every preference of a set by the client's model."""
    everything = Batch(held_out, range(len(held_out)))
    point = await everything.reference_point(client, loss)
    found: list[Measured] = []
    for start in range(0, len(held_out), _PREFERENCES_A_PASS):
        batch = Batch(held_out, range(start, min(start + _PREFERENCES_A_PASS, len(held_out))))
        datums = batch.datums(loss, point)
        output = await client.forward(datums, loss)
        found += batch.measured(
            loss, output.logprobs_D, point, _by_row(batch, losses_of(loss, datums, output.logprobs_D))
        )
    return found


def measure_reference(held_out: PreferenceSet, loss: AnyPreferenceLoss, losses_of: LossesOf) -> list[Measured]:
    """Every preference of a set by the reference itself, whose log-probabilities are known: nothing is computed."""
    assert held_out.references is not None
    everything = Batch(held_out, range(len(held_out)))
    point = 0.0 if isinstance(loss, KTO) else None
    datums = everything.datums(loss, point)
    logprobs_D = [datum.loss_fn_inputs["reference_logprobs"].to_numpy().astype(np.float32) for datum in datums]
    losses = _by_row(everything, losses_of(loss, datums, logprobs_D)) if datums else []
    return everything.measured(loss, logprobs_D, point, losses)


def _by_row(batch: Batch, losses: npt.NDArray[np.float64]) -> Sequence[float]:
    """One loss a preference: the mean over its sides where there is one for each."""
    if losses.size == len(batch.indices):
        return list(losses)
    sizes = [len(batch.of.preferences[index].sides) for index in batch.indices]
    ends = np.cumsum(sizes)
    return [float(losses[end - size : end].mean()) for end, size in zip(ends, sizes, strict=True)]


def write_measured(path: Path, step: int, found: Sequence[Measured]) -> None:
    """Keep what was measured after ``step`` steps, so that the same weights need not be measured again."""
    files.write_json(path, {"step": step, "preferences": [asdict(one) for one in found]})


def read_measured(path: Path, step: int) -> list[Measured] | None:
    """What is kept there, if it was measured after ``step`` steps."""
    kept = files.read_json(path)
    return [Measured(**one) for one in kept["preferences"]] if kept and kept["step"] == step else None


def preference_metrics(area: str, found: Sequence[Measured]) -> dict[str, float]:
    """The means of all figures that there are, as ``area/name``."""
    names = ("loss", *FIGURES)
    values = {name: [v for v in (getattr(one, name) for one in found) if v is not None] for name in names}
    return {f"{area}/{name}": float(np.mean(some)) for name, some in values.items() if some}
