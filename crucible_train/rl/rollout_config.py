"""How far an episode may go, how its answers are sampled, and what becomes of one that fails."""

from collections.abc import Mapping
from typing import Literal

from crucible_train.config.base import Section, option
from crucible_train.rl.environment import Turn
from crucible_train.rl.failures import FailurePolicy
from crucible_train.types import SamplingParams

_PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""Sampling from the model's own distribution."""


class RolloutConfig(Section):
    """Limits and sampling of episodes. The answer that reaches a limit is still judged."""

    max_turns: int = option(16, "answers in an episode, 1 or more", ge=1)
    max_tokens: int = option(128, "longest answer in tokens, 1 or more; one that is cut off ends the episode", ge=1)
    max_trajectory_tokens: int | None = option(
        None, "tokens of all answers of an episode together, 1 or more; null: no limit", ge=1, advanced=True
    )
    max_tool_calls: int | None = option(
        None, "tools called in an episode, 0 or more; null: no limit", ge=0, advanced=True
    )
    max_context: int | None = option(
        None, "positions that a prompt and its answer take together, 2 or more; null: no limit", ge=2, advanced=True
    )
    timeout_s: float | None = option(
        None,
        "seconds an episode may take, above 0; waiting with the others of its batch for answers is not counted; "
        "null: no limit",
        gt=0,
    )
    temperature: float = option(1.0, "of the answers, 0 or more; 0 is greedy", ge=0)
    top_p: float = option(1.0, "of the answers, in (0, 1]", gt=0, le=1, advanced=True)
    top_k: int = option(0, "of the answers: most likely tokens kept, 0 or more; 0 keeps all", ge=0, advanced=True)
    min_p: float = option(
        0.0,
        "of the answers: tokens kept are this share as probable as the likeliest, in [0, 1]",
        ge=0,
        le=1,
        advanced=True,
    )
    on_error: Literal["fail_fast", "retry", "min_viable"] = option(
        "min_viable",
        "an episode that fails stops the run; or is tried again; or is left out where enough others are left",
    )
    num_tries: int = option(3, "retry only: how often an episode is tried in all, 1 or more", ge=1, advanced=True)
    min_group_share: float = option(
        0.5, "min_viable only: smallest share of a group that must be left, in (0, 1]", gt=0, le=1, advanced=True
    )

    @property
    def bent(self) -> Mapping[str, float]:
        """The fields that have answers come from another distribution than the model's own, and what would not."""
        return {name: plain for name, plain in _PLAIN.items() if getattr(self, name) != plain}

    @property
    def failures(self) -> FailurePolicy:
        """What becomes of a group of which an episode fails."""
        match self.on_error:
            case "fail_fast":
                return FailurePolicy.fail_fast()
            case "retry":
                return FailurePolicy.retry(self.num_tries)
            case "min_viable":
                return FailurePolicy.min_viable(self.min_group_share)

    def params(self, turn: Turn, max_tokens: int, seed: int) -> SamplingParams:
        """The sampling of one answer."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=seed,
            top_k=self.top_k,
            min_p=self.min_p,
            stop_token_ids=tuple(stop for stop in turn.stop_sequences if isinstance(stop, int)),
            stop_texts=tuple(stop for stop in turn.stop_sequences if isinstance(stop, str)),
        )
