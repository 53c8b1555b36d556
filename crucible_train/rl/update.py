"""One batch on its way through the model: scored, completed, its gradients formed, its optimizer steps taken, counted.

Axes: P groups of a batch, G answers to a problem, D datums, N positions of a datum.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np

from crucible_train.errors import ConfigError
from crucible_train.loop.run import unbroken
from crucible_train.loop.training import Evaluate, StepDone
from crucible_train.ports import TrainingClient
from crucible_train.rl.batch import (
    ScoredGroup,
    scored_groups,
    training_part,
    with_kl_in_advantage,
    with_truncated_importance,
)
from crucible_train.rl.config import AlgorithmConfig, RLOptimConfig
from crucible_train.rl.environment import TrajectoryGroup
from crucible_train.rl.metrics import clip_fraction, divergence, group_metrics, prefixed
from crucible_train.rl.rollouts import OnFailure
from crucible_train.rl.sequences import with_input
from crucible_train.types import AdamParams, CrossEntropy, Datum

T = TypeVar("T")
Reference = Callable[[Sequence[Datum]], Awaitable[Sequence[np.ndarray]]]
"""The log-probability that the model before training gives to each target that counts, one array (N_d,) a datum."""
Span = Callable[[str, str], AbstractContextManager[object]]
"""Times what happens in its context: its name, and the track of the timeline that it belongs to."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run is given besides its model and its problems.

    Attributes:
        evaluate: measures the current weights on held-out problems.
        reference: the model before training; needed where there is a penalty on the divergence from it.
        on_failure: told of every episode that fails.
        show: told of the groups of every step with their advantages.
        span: times a phase of a step.
    """

    evaluate: Evaluate
    reference: Reference | None = None
    on_failure: OnFailure = lambda _problem, _error: None
    show: Callable[[int, Sequence[ScoredGroup]], None] = lambda _step, _groups: None
    span: Span = lambda _name, _track: nullcontext()


def _ends(num: int, num_parts: int) -> list[int]:
    """Where a row of things is cut into parts of nearly equal size, 0 and their number included."""
    return [num * part // num_parts for part in range(num_parts + 1)]


class Policy:
    """The policy over the whole run.

    ``step`` says how many optimizer steps it has taken; ``is_whole`` whether its weights are those of the last finished
    batch, and not somewhere between two.
    """

    def __init__(
        self,
        algorithm: AlgorithmConfig,
        train: RLOptimConfig,
        max_tokens: int,
        client: TrainingClient,
        around: Surroundings,
    ) -> None:
        """Begin before the first step; ``max_tokens`` is the length of the longest answer."""
        self.algorithm, self.train, self.max_tokens = algorithm, train, max_tokens
        self.client, self.around = client, around
        self.is_whole = True
        self._num_before = self._num_of_step = 0

    def begin(self, step: int, adam: AdamParams) -> "Update":
        """Begin a step."""
        self._num_before, self._num_of_step = step * self.algorithm.num_substeps, 0
        return Update(self, step, adam, self.step())

    def step(self) -> int:
        """How many optimizer steps the weights have taken."""
        return self._num_before + self._num_of_step

    def moved(self) -> None:
        """An optimizer step of the batch is done, or left out where nothing taught anything."""
        self._num_of_step += 1


@dataclass(frozen=True, slots=True)
class Part:
    """What one optimizer step, or one part of its gradient, is taken on."""

    groups_P: Sequence[ScoredGroup]
    datums_D: Sequence[Datum]


@dataclass(slots=True)
class Update:
    """One batch on its way through the model: its gradients, its steps, its numbers.

    ``sampled_datums`` hold what the sampler said of its tokens; ``datums``, which are trained on, what the loss
    compares with, and the advantages less their penalties.
    """

    policy: Policy
    step: int
    adam: AdamParams
    first_policy_step: int
    groups: list[TrajectoryGroup] = field(default_factory=list)
    scored: list[ScoredGroup] = field(default_factory=list)
    sampled_datums: list[Datum] = field(default_factory=list)
    staleness: list[int] = field(default_factory=list)
    datums: list[Datum] = field(default_factory=list)
    reference_logprobs: list[np.ndarray] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    sample_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    _is_waiting: bool = False

    async def sampled(self, groups: Awaitable[T]) -> T:
        """Wait for groups, and count the time."""
        started = time.monotonic()
        with self.policy.around.span("sample", "training"):
            found = await groups
        self.sample_s += time.monotonic() - started
        return found

    async def prepared(self, groups: Sequence[TrajectoryGroup], num_parts: int) -> list["Part"]:
        """Groups scored among each other, cut into parts, with all that the loss reads of each."""
        algorithm, train, max_tokens = self.policy.algorithm, self.policy.train, self.policy.max_tokens
        scored = scored_groups(groups, algorithm, max_tokens=max_tokens)
        ends, planned = _ends(len(scored), num_parts), _ends(train.groups_per_batch, num_parts)
        batches = [
            training_part(
                scored[begin:end],
                algorithm,
                num_planned=(planned_end - planned_begin) * train.num_generations,
                max_tokens=max_tokens,
            )
            for (begin, end), (planned_begin, planned_end) in zip(pairwise(ends), pairwise(planned), strict=True)
        ]
        sampled = [datum for batch in batches for datum in batch.datums_D]
        with self.policy.around.span("prepare", "training"):
            ready = await self._completed(sampled) if sampled else []
        self.groups += groups
        self.scored += scored
        self.sampled_datums += sampled
        cuts = np.cumsum([0, *(len(batch.datums_D) for batch in batches)]).tolist()
        return [
            Part(batch.groups_P, ready[begin:end]) for batch, (begin, end) in zip(batches, pairwise(cuts), strict=True)
        ]

    async def accumulate(self, part: "Part") -> None:
        """Form the gradient of a part and add it to what is gathered."""
        now = self.policy.step()
        self.staleness += [
            now - transition.policy_step
            for one in part.groups_P
            for trajectory in one.group.trajectories_G
            for transition in trajectory.transitions
        ]
        if not part.datums_D:
            return
        with self.policy.around.span("train", "training"):
            loss = self.policy.algorithm.policy_loss()
            output = await self.policy.client.forward_backward(part.datums_D, loss)
        self.datums += part.datums_D
        self.logprobs += output.logprobs_D
        self.losses.append(output.loss)
        self._is_waiting = True

    async def optimise(self) -> None:
        """Take an optimizer step, if there is a gradient."""
        if self._is_waiting:
            self._is_waiting = self.policy.is_whole = False
            with self.policy.around.span("optimise", "training"):
                # it moves the weights, so the state must move with it
                optim = await unbroken(self.policy.client.optim_step(self.adam))
            self.norms.append(optim["grad_norm"])
        self.policy.moved()

    async def done(self) -> StepDone:
        """The numbers of the step."""
        algorithm, sampled = self.policy.algorithm, self.sampled_datums
        metrics = {
            **group_metrics(self.groups, self.first_policy_step),
            "optim/learning_rate": self.adam.learning_rate,
            "train/num_groups": float(sum(one.is_trained for one in self.scored)),
        }
        if self.staleness:
            metrics["sample/staleness"] = float(np.mean(self.staleness))
        if self.datums:
            loss = algorithm.policy_loss()
            clipped = clip_fraction(loss, self.datums, self.logprobs)
            metrics |= {
                "train/loss": sum(self.losses) / algorithm.num_substeps,
                "optim/grad_norm": max(self.norms),
                **prefixed("train/", divergence(sampled, self.logprobs)),
                **({} if clipped is None else {"train/clip_fraction": clipped}),
            }
            if self.reference_logprobs:
                away = divergence(sampled, self.reference_logprobs)
                metrics["train/kl_reference"] = away["kl_v1"]
            if algorithm.measure_post_kl:
                after = await unbroken(self.policy.client.forward(sampled, CrossEntropy()))
                moved = divergence(sampled, after.logprobs_D)
                metrics |= {"train/post_kl_v1": moved["kl_v1"], "train/post_kl_v2": moved["kl_v2"]}
        self.policy.around.show(self.step + 1, self.scored)
        return StepDone(sum(datum.num_tokens for datum in self.datums), metrics, self._timings())

    async def _completed(self, datums: Sequence[Datum]) -> Sequence[Datum]:
        """Datums with what the reference, and the weights before the step, say of them: once for all substeps."""
        algorithm, around = self.policy.algorithm, self.policy.around
        if algorithm.kl_coef:
            if around.reference is None:
                raise ConfigError("algorithm.kl_coef: there is no reference to measure the divergence from")
            reference_D = await around.reference(datums)
            self.reference_logprobs += reference_D
            if algorithm.kl_in == "advantage":
                datums = with_kl_in_advantage(datums, reference_D, algorithm.kl_coef, algorithm.estimator)
            else:
                named = zip(datums, reference_D, strict=True)
                datums = [with_input(datum, "reference_logprobs", values) for datum, values in named]
        if algorithm.max_importance_weight is not None:
            current = await self.policy.client.forward(datums, CrossEntropy())
            datums = with_truncated_importance(datums, current.logprobs_D, algorithm.max_importance_weight)
        return datums

    def _timings(self) -> dict[str, float]:
        seconds = time.monotonic() - self.started
        # sampled ahead: their time is that of other steps
        sample_s = self.sample_s if self.sample_s > 0.01 * seconds else seconds
        num_sampled = sum(one.num_sampled_tokens for group in self.groups for one in group.trajectories_G)
        num_trained, train_s = sum(datum.num_tokens for datum in self.datums), max(1e-9, seconds - self.sample_s)
        return {
            "time/step_s": seconds,
            "time/sample_s": self.sample_s,
            "time/train_s": train_s,
            "perf/sampled_tokens_per_second": num_sampled / max(1e-9, sample_s),
            "perf/tokens_per_second": num_trained / train_s,
        }
