"""The groups of fields of learning from preferences. Names are TRL's where it has one."""

from typing import Literal, Self

from pydantic import model_validator

from crucible_train.config.base import Section, option
from crucible_train.config.sections import AdamConfig, StepsOrShare
from crucible_train.types import DPO, IPO, KTO, ORPO, AnyPreferenceLoss, BradleyTerry, SimPO

LossType = Literal["sigmoid", "ipo", "kto", "orpo", "simpo", "bradley_terry"]
_ONLY: dict[str, LossType] = {
    "label_smoothing": "sigmoid",
    "simpo_gamma": "simpo",
    "desirable_weight": "kto",
    "undesirable_weight": "kto",
}


class PreferenceConfig(Section):
    """How preferences become a gradient."""

    loss_type: LossType = option(
        "sigmoid",
        "sigmoid is DPO; ipo, kto; orpo and simpo, which need no reference; bradley_terry trains a reward model",
    )
    beta: float | None = option(
        None,
        "strength of the pull towards the reference, above 0: of the preference in orpo (its lambda) and simpo; "
        "null: 0.1, simpo 2",
        gt=0,
    )
    label_smoothing: float = option(
        0.0, "sigmoid: share of pairs whose label is taken to be wrong, in [0, 0.5)", ge=0, lt=0.5, advanced=True
    )
    simpo_gamma: float = option(1.0, "simpo: margin that is asked for, 0 or more", ge=0, advanced=True)
    desirable_weight: float = option(1.0, "kto: weight of wanted completions, 0 or more", ge=0, advanced=True)
    undesirable_weight: float = option(1.0, "kto: weight of unwanted completions, 0 or more", ge=0, advanced=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, loss_type in _ONLY.items():
            if self.loss_type != loss_type and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: {self.loss_type} does not read it; remove it, or take {loss_type}")
        if self.is_reward_model and self.beta is not None:
            raise ValueError(f"beta: {self.loss_type} does not read it; remove it")
        return self

    def loss(self) -> AnyPreferenceLoss:
        """The loss as a value."""
        match self.loss_type:
            case "sigmoid":
                return DPO(beta=self.beta or 0.1, label_smoothing=self.label_smoothing)
            case "ipo":
                return IPO(beta=self.beta or 0.1)
            case "kto":
                return KTO(
                    beta=self.beta or 0.1,
                    desirable_weight=self.desirable_weight,
                    undesirable_weight=self.undesirable_weight,
                )
            case "orpo":
                return ORPO(beta=self.beta or 0.1)
            case "bradley_terry":
                return BradleyTerry()
        return SimPO(beta=self.beta or 2.0, gamma=self.simpo_gamma)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads the model before training."""
        return self.loss_type not in ("orpo", "simpo", "bradley_terry")

    @property
    def is_reward_model(self) -> bool:
        """Whether the model gets a scalar head, and gives answers rewards in place of log-probabilities."""
        return self.loss_type == "bradley_terry"

    @property
    def needs_mismatched(self) -> bool:
        """Whether the loss reads how likely completions are behind the prompts of others."""
        return self.loss_type == "kto"

    @property
    def takes_unpaired(self) -> bool:
        """Whether a completion alone can be trained on."""
        return self.loss_type == "kto"


class DPOOptimConfig(AdamConfig):
    """AdamW, its schedule and the size of a step. The first step's rate is above 0."""

    learning_rate: float | None = option(
        None,
        "peak rate, above 0; null: 2e-5 (4096 / hidden size)^0.8 for an adapter, ten times that for bradley_terry, "
        "a tenth of either without an adapter",
        gt=0,
    )
    num_train_epochs: float = option(1.0, "passes over the data, above 0", gt=0)
    max_steps: int | None = option(None, "optimizer steps, 1 or more; null follows num_train_epochs", ge=1)
    per_device_train_batch_size: int = option(8, "preferences a gradient accumulation step, 1 or more", ge=1)
    gradient_accumulation_steps: int = option(1, "multiplies the batch of an optimizer step, 1 or more", ge=1)


class DPOEvalConfig(Section):
    """What is measured on held-out preferences, while training and at its end."""

    eval_steps: StepsOrShare = option(0.5, "evaluate every N steps, or every share of the run; 0 at the end only")
    metric_for_best_model: str = option("eval/loss", "metric that chooses the best checkpoint", advanced=True)
    greater_is_better: bool | None = option(
        None, "whether that metric is to rise; null: scores are, losses are not", advanced=True
    )
    early_stopping_patience: int | None = option(
        None, "evaluations without a gain before stopping; null never", ge=1, advanced=True
    )
    early_stopping_threshold: float = option(0.0, "smallest gain that counts, 0 or more", ge=0, advanced=True)
