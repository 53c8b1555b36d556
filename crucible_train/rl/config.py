"""The groups of fields of reinforcement learning. Names are the field's, TRL's where it has one."""

from typing import Literal, Self

from pydantic import model_validator

from crucible_train.config.base import Section, option
from crucible_train.config.sections import AdamConfig, ChatFormatConfig, StepsOrShare
from crucible_train.types import CISPO, DRO, GSPO, PPO, ImportanceSampling, PolicyLoss

_CLIPPED: dict[str, type[PPO] | type[CISPO] | type[GSPO]] = {"ppo": PPO, "cispo": CISPO, "gspo": GSPO}


Scalar = str | int | float | bool
OptionValue = Scalar | list[Scalar] | dict[str, Scalar | list[Scalar] | None] | None
"""What an option of an environment may be: ``{columns: {prompt: question}}`` names a mapping."""


class EnvConfig(Section):
    """What the policy acts in."""

    name: str = option("arithmetic", "one of those that python -m crucible_train.rl.environments lists")
    options: dict[str, OptionValue] = option({}, "its options, by name; the same command lists them")


class ChatConfig(ChatFormatConfig):
    """The chat format."""

    renderer: str = option("auto", "chat format; auto takes the model's own, chat_template any Jinja template")
    renderer_options: dict[str, str | int | float | bool | None] = option(
        {}, "options of the renderer, by name", advanced=True
    )


class AlgorithmConfig(Section):
    """How rewards become a gradient."""

    loss: Literal["importance_sampling", "ppo", "cispo", "dro", "gspo"] = option(
        "importance_sampling", "policy loss; with one step a batch of fresh answers all but dro have one gradient"
    )
    clip_low: float | None = option(
        None, "ppo, cispo, gspo: lower bound of the ratio, 0 or more; null: 0.8, 0, 0.9997", ge=0, advanced=True
    )
    clip_high: float | None = option(
        None, "ppo, cispo, gspo: upper bound of the ratio; null: 1.2, 4, 1.0004", gt=0, advanced=True
    )
    dro_beta: float = option(0.05, "dro: weight of the quadratic, 0 or more", ge=0, advanced=True)
    advantage: Literal["group_mean", "group_normalised", "rloo", "batch_mean"] = option(
        "group_mean", "reward less that of the group; also over its deviation; of the others; of all groups of the step"
    )
    normalisation: Literal["token", "sequence", "constant"] = option(
        "token", "the loss is a mean over tokens; over answers of their means; or a sum over answers times max_tokens"
    )
    kl_coef: float = option(0.0, "weight of the divergence from the model before training, 0 or more", ge=0)
    kl_in: Literal["advantage", "loss"] = option(
        "advantage", "whether the divergence is paid for in the advantage or in the loss", advanced=True
    )
    kl_estimator: Literal["k1", "k3"] | None = option(
        None, "its estimate at a token; null: k1 in the advantage, k3 in the loss", advanced=True
    )
    max_importance_weight: float | None = option(
        None,
        "answers of older weights: bound of the weight that makes up for them, above 0, at one forward pass more; "
        "null leaves that to the loss's ratio",
        gt=0,
        advanced=True,
    )
    remove_constant_groups: bool = option(
        True, "leave out groups whose answers all have advantage 0, and so teach nothing", advanced=True
    )
    max_resampling_rounds: int = option(
        0, "times that more problems are played for groups that were left out, 0 or more", ge=0, advanced=True
    )
    mask_truncated: bool = option(False, "do not train on answers that were cut off", advanced=True)
    overlong_buffer_tokens: int = option(
        0, "last tokens before max_tokens over which an answer's reward falls, 0 or more", ge=0, advanced=True
    )
    overlong_penalty: float = option(
        1.0, "what an answer of max_tokens costs, where there is such a buffer, 0 or more", ge=0, advanced=True
    )
    num_substeps: int = option(1, "optimizer steps that a batch is cut into, 1 or more", ge=1, advanced=True)
    measure_post_kl: bool = option(
        False, "measure the divergence of each update, at one forward pass more", advanced=True
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.loss not in _CLIPPED and (self.clip_low is not None or self.clip_high is not None):
            name = "clip_low" if self.clip_low is not None else "clip_high"
            raise ValueError(f"{name}: {self.loss} does not clip; remove it, or take ppo, cispo or gspo")
        try:
            self.policy_loss()
        except ValueError as error:
            raise ValueError(f"clip_low: {error}") from error
        return self

    @property
    def estimator(self) -> Literal["k1", "k3"]:
        """How the divergence is estimated."""
        return self.kl_estimator or ("k1" if self.kl_in == "advantage" else "k3")

    def policy_loss(self) -> PolicyLoss:
        """The loss as a value."""
        coef = self.kl_coef if self.kl_in == "loss" else 0.0
        match self.loss:
            case "importance_sampling":
                return ImportanceSampling(kl_coef=coef, kl_estimator=self.estimator)
            case "dro":
                return DRO(beta=self.dro_beta, kl_coef=coef, kl_estimator=self.estimator)
        kind = _CLIPPED[self.loss]
        given = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        bounds = {name: value for name, value in given.items() if value is not None}
        return kind(kl_coef=coef, kl_estimator=self.estimator, **bounds)


class ScheduleConfig(Section):
    """When answers are sampled and when weights are updated."""

    mode: Literal["synchronous", "off_policy", "streamed"] = option(
        "synchronous",
        "each step's answers by the weights before it; by weights up to max_steps_off_policy older; or synchronous, "
        "with gradients formed as groups are finished",
    )
    max_steps_off_policy: int = option(
        1, "off_policy: how many batches sampling may run ahead, 1 or more", ge=1, advanced=True
    )
    lockstep: bool = option(
        True,
        "ask for everybody's next turn at once, so that a run gives the same bits every time; false: as soon as each "
        "environment has answered, which is quicker where environments are slow",
        advanced=True,
    )
    num_minibatches: int = option(4, "streamed: parts of a batch, 1 or more", ge=1, advanced=True)


class RLOptimConfig(AdamConfig):
    """AdamW, its schedule and the size of a step."""

    learning_rate: float | None = option(
        None,
        "peak rate, above 0; null: 8e-5 (4096 / hidden size)^0.8 for an adapter, a tenth of that without one",
        gt=0,
    )
    max_steps: int = option(30, "batches, 1 or more", ge=1)
    groups_per_batch: int = option(16, "problems a batch, 1 or more", ge=1)
    num_generations: int = option(8, "answers to each problem, 1 or more", ge=1)


class RLEvalConfig(Section):
    """What is measured on held-out problems, while training and at its end."""

    eval_steps: StepsOrShare = option(0.25, "evaluate every N steps, or every share of the run; 0 at the end only")
    num_step_problems: int = option(
        16, "held-out problems played at every evaluation while training, 0 or more", ge=0, advanced=True
    )
    temperature: float = option(0.0, "of the answers; 0 is greedy", ge=0, advanced=True)
    metric_for_best_model: str = option("eval/reward", "metric that chooses the best checkpoint", advanced=True)
    greater_is_better: bool | None = option(
        None, "whether that metric is to rise; null: rewards are, losses are not", advanced=True
    )
    early_stopping_patience: int | None = option(
        None, "evaluations without a gain before stopping; null never", ge=1, advanced=True
    )
    early_stopping_threshold: float = option(0.0, "smallest gain that counts, 0 or more", ge=0, advanced=True)
