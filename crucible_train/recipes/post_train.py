"""Several methods, one after the other: each begins from the model that the one before it published."""

from typing import Any, Literal, Self, get_args

from pydantic import model_validator

from crucible_train.config.base import Section, option
from crucible_train.config.run_config import RunConfig
from crucible_train.config.sections import EvalConfig, OptimConfig, PreferenceDataConfig, TrackingConfig
from crucible_train.errors import ConfigError
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.recipes.sft import SFTConfig

Method = Literal["sft", "dpo", "distill", "rl"]
StageName = Literal["sft", "dpo", "distill", "rl", "evaluate"]
SHARED = ("model", "output_dir", "run_name", "seed", "report_to", "tracking", "cache_dir")


class PostTrainConfig(Section):
    """A chain of methods on one model."""

    model: str = option("smollm2-135m-instruct", "a folder, a GGUF file, a hub id, or the built-in model's name")
    stages: list[StageName] = option(
        ["sft", "dpo", "evaluate"],
        "in this order: sft, dpo, distill, rl, and evaluate, which measures the model so far beside the first one on "
        "the rows that sft holds out",
        min_length=1,
    )
    output_dir: str = option("runs", "folder that holds the run folders")
    run_name: str | None = option(None, "name in front of the ids of the runs; null makes one of the model")
    seed: int = option(0, "decides every split, order and draw; 0 to 4294967295", ge=0, le=2**32 - 1)
    report_to: list[str] = option(
        ["auto"],
        "where metrics go besides metrics.jsonl: console, csv, tensorboard, wandb, mlflow, trackio, neptune; auto is "
        "the console, and mlflow where it is installed",
        advanced=True,
    )
    cache_dir: str = option(
        "~/.cache/crucible_train", "store of cached artifacts: a folder or any fsspec URL", advanced=True
    )
    tracking: TrackingConfig = option(TrackingConfig(), "what trackers are told")
    sft: SFTConfig = option(
        SFTConfig(train=OptimConfig(max_steps=6), eval=EvalConfig(max_new_tokens=160)), "supervised fine-tuning"
    )
    dpo: DPOConfig = option(DPOConfig(data=PreferenceDataConfig(max_rows=64)), "learning from preferences")
    distill: DistillConfig = option(DistillConfig(), "learning from a teacher")
    rl: RLConfig = option(RLConfig(), "reinforcement learning")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for method in get_args(Method):
            section: RunConfig = getattr(self, method)
            for field in SHARED:
                if getattr(section, field) != type(section).model_fields[field].default:
                    raise ValueError(f"{method}.{field}: give {field} instead: the whole chain shares it")
        if not set(self.stages) & set(get_args(Method)):
            raise ValueError(f"stages: evaluate alone trains nothing; name one of {', '.join(get_args(Method))} too")
        if self.dpo.preference.is_reward_model and "dpo" in self.stages[:-1]:
            raise ValueError(
                "dpo.preference.loss_type: bradley_terry makes a reward model, which writes no answers: let dpo be the "
                "last of stages"
            )
        return self


def chained(config: PostTrainConfig, method: Method, number: int, model: str) -> Any:
    """The configuration of one method in the chain.

    Args:
        config: of the whole chain.
        method: which one.
        number: its place in the chain, from 1.
        model: what it begins from.

    Raises:
        ConfigError: the method is unknown.
    """
    if method not in get_args(Method):
        raise ConfigError(f"stages: {method!r} is unknown")
    given = {field: getattr(config, field) for field in SHARED}
    chain = config.run_name or "post-train"
    given["tracking"] = config.tracking.model_copy(update={"group": config.tracking.group or chain})
    name = f"{chain}-{number}-{method}"
    return getattr(config, method).model_copy(update=given | {"model": model, "run_name": name})
