"""The groups of fields that the flows share. Names are those people know, TRL's where it has one."""

from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import BeforeValidator

from crucible_train.config.base import Section, option

TrainOn = Literal[
    "last_assistant_message",
    "last_assistant_turn",
    "all_assistant_messages",
    "all_messages",
    "all_tokens",
    "all_user_and_system_messages",
    "customized",
]

StepsOrShare = Annotated[int, Ge(0)] | Annotated[float, Gt(0), Lt(1)]
"""A number of steps, or a share of all steps."""

_SHORT_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    BeforeValidator(lambda value: _SHORT_PRECISIONS.get(value, value) if isinstance(value, str) else value),
]


class ChatFormatConfig(Section):
    """How conversations become tokens. What derives from it declares the fields, in the order its users read them."""

    if TYPE_CHECKING:
        renderer: str
        renderer_options: dict[str, str | int | float | bool | None]


class DataConfig(ChatFormatConfig):
    """Where the rows come from and what becomes of them."""

    format: Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "comparison"] = option(
        "auto", "conversation format of the rows; auto detects it and says so. comparison trains a judge"
    )
    columns: dict[str, str] = option(
        {}, "renames before reading: our column name -> the file's, e.g. {prompt: question}", advanced=True
    )
    eval_split: Annotated[float, Ge(0), Lt(1)] | str = option(
        0.1, "held-out share of the rows in [0, 1), or the path of another data set"
    )
    max_rows: int | None = option(None, "read only this many rows, 1 or more; null reads all", ge=1, advanced=True)
    max_length: int = option(2048, "longest conversation in tokens, 2 or more; a longer one is a bad row", ge=2)
    on_bad_row: Literal["stop", "quarantine"] = option(
        "stop", "a bad row stops the run, or is set aside with its reason in quarantine.jsonl"
    )
    renderer: str = option("auto", "chat format; auto takes the model's own, chat_template any Jinja template")
    renderer_options: dict[str, str | int | float | bool | None] = option(
        {}, "options of the renderer, by name", advanced=True
    )
    train_on: TrainOn = option("all_assistant_messages", "which messages are trained")
    num_workers: int = option(
        0, "processes that render, 0 or more; 0 chooses by the number of rows", ge=0, advanced=True
    )


class PreferenceDataConfig(ChatFormatConfig):
    """Where the preferences come from and what becomes of them."""

    format: Literal["auto", "pairs", "comparison", "labelled"] = option(
        "auto", "preference format of the rows; auto detects it and says so"
    )
    columns: dict[str, str] = option(
        {}, "renames before reading: our column name -> the file's, e.g. {chosen: better}", advanced=True
    )
    eval_split: Annotated[float, Ge(0), Lt(1)] | str = option(
        0.2, "held-out share of the prompts in [0, 1), or the path of another data set"
    )
    max_rows: int | None = option(None, "read only this many rows, 1 or more; null reads all", ge=1, advanced=True)
    max_length: int = option(2048, "longest conversation in tokens, 2 or more; a longer one is a bad row", ge=2)
    on_bad_row: Literal["stop", "quarantine"] = option(
        "stop",
        "a bad row stops the run, or is set aside with its reason in quarantine.jsonl; ties, equal sides and different "
        "prompts are always set aside",
    )
    renderer: str = option("auto", "chat format; auto takes the model's own, chat_template any Jinja template")
    renderer_options: dict[str, str | int | float | bool | None] = option(
        {}, "options of the renderer, by name", advanced=True
    )


class PeftConfig(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685); off means full fine-tuning."""

    use_peft: bool = option(True, "train a LoRA adapter; false trains all weights")
    lora_r: int = option(16, "rank, 1 or more", ge=1)
    lora_alpha: float = option(32.0, "scale; the update is multiplied by lora_alpha / lora_r, above 0", gt=0)
    lora_dropout: float = option(
        0.0, "share of adapter inputs dropped while training, in [0, 1)", ge=0, lt=1, advanced=True
    )
    lora_target_modules: str | list[str] = option("all-linear", "module names that get an adapter, or all-linear")


class AdamConfig(Section):
    """AdamW and its schedule. The first step's rate is above 0."""

    learning_rate: float | None = option(
        None,
        "peak rate, above 0; null: 2e-4 (4096 / hidden size)^0.8 for an adapter, a tenth of that without one",
        gt=0,
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine", "wsd"] = option("cosine", "shape after the warm-up")
    warmup_steps: StepsOrShare = option(0.05, "steps the rate rises: a number, or a share of all steps in (0, 1)")
    decay_steps: StepsOrShare = option(0.2, "wsd only: steps the rate falls at the end", advanced=True)
    min_lr_ratio: float = option(0.0, "rate at the end as a share of the peak, in [0, 1]", ge=0, le=1, advanced=True)
    weight_decay: float = option(0.0, "decoupled decay, 0 or more", ge=0, advanced=True)
    adam_beta1: float = option(0.9, "decay of the first moment, in [0, 1)", ge=0, lt=1, advanced=True)
    adam_beta2: float = option(0.999, "decay of the second moment, in [0, 1)", ge=0, lt=1, advanced=True)
    adam_epsilon: float = option(1e-8, "added to the root of the second moment, above 0", gt=0, advanced=True)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this L2 norm; 0 turns it off", ge=0, advanced=True)


class OptimConfig(AdamConfig):
    """AdamW, its schedule and the size of a step. The first step's rate is above 0."""

    num_train_epochs: float = option(1.0, "passes over the data, above 0", gt=0)
    max_steps: int | None = option(None, "optimizer steps, 1 or more; null follows num_train_epochs", ge=1)
    per_device_train_batch_size: int = option(8, "conversations a gradient accumulation step, 1 or more", ge=1)
    gradient_accumulation_steps: int = option(1, "multiplies the batch of an optimizer step, 1 or more", ge=1)
    loss_normalisation: Literal["token", "example"] = option(
        "token", "a step's loss is the mean over trained tokens, or over examples of their token means", advanced=True
    )


class EngineConfig(Section):
    """How the local engine computes. None of these changes what is computed, but for rounding."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto takes a GPU where there is one")
    precision: Precision = option("auto", "matrix products in float32 or bfloat16; auto probes what is fast here")
    micro_batch_tokens: int = option(0, "tokens computed at once, 0 or more; 0 chooses by device", ge=0, advanced=True)
    activation_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")
    num_threads: int = option(
        0, "processor threads, 0 or more; 0 takes every core this process may use", ge=0, advanced=True
    )


class EvalConfig(Section):
    """What is measured on held-out rows, while training and at its end."""

    eval_steps: StepsOrShare = option(0.5, "evaluate every N steps, or every share of the run; 0 at the end only")
    num_samples: int | None = option(
        None,
        "held-out prompts answered and scored, before and after; null: 8, or none where fewer than 10 are held out",
        ge=0,
    )
    num_step_samples: int = option(
        0, "held-out prompts answered and scored at every evaluation while training, 0 or more", ge=0, advanced=True
    )
    max_new_tokens: int = option(256, "longest answer in tokens, 1 or more", ge=1)
    temperature: float = option(0.0, "of the answers; 0 is greedy", ge=0, advanced=True)
    top_p: float = option(1.0, "of the answers, in (0, 1]", gt=0, le=1, advanced=True)
    scorers: list[str] = option(["auto"], "how answers are scored; auto chooses by what the references look like")
    metric_for_best_model: str = option("eval/nll", "metric that chooses the best checkpoint", advanced=True)
    greater_is_better: bool | None = option(
        None, "whether that metric is to rise; null: scores are, losses are not", advanced=True
    )
    early_stopping_patience: int | None = option(
        None, "evaluations without a gain before stopping; null never", ge=1, advanced=True
    )
    early_stopping_threshold: float = option(0.0, "smallest gain that counts, 0 or more", ge=0, advanced=True)


class CheckpointConfig(Section):
    """What is kept, and where a run goes on."""

    save_steps: StepsOrShare = option(0.25, "save every N steps, or every share of the run; 0 at the end only")
    save_minutes: float = option(
        10.0, "save when this many minutes have passed since the last; 0 never", ge=0, advanced=True
    )
    save_total_limit: int = option(2, "checkpoints kept besides the best one, 1 or more", ge=1, advanced=True)
    resume_from_checkpoint: str = option("auto", "auto goes on from the newest good one; never starts anew; or a path")
    load_best_model_at_end: bool = option(False, "publish the best checkpoint, not the last", advanced=True)


class TrackingConfig(Section):
    """What trackers are told of a run besides its numbers. It changes nothing that is computed."""

    project: str = option(
        "crucible-train", "project or experiment that runs are listed under", advanced=True, min_length=1
    )
    name: str | None = option(None, "what the run is called there; null takes the run's id", advanced=True)
    group: str | None = option(None, "what it belongs to, such as one comparison; null for none", advanced=True)
    tags: list[str] = option([], "words to find it by", advanced=True)
    notes: str = option("", "a remark", advanced=True)
    artifacts: Literal["adapter", "none", "all"] = option(
        "adapter",
        "what is uploaded at the end: the adapter and the report, no file, or all that is published",
        advanced=True,
    )
    finish_wait_s: float = option(
        30.0, "seconds a finished run waits for its trackers, 0 or more; then it ends without them", ge=0, advanced=True
    )


__all__ = [
    "AdamConfig",
    "ChatFormatConfig",
    "CheckpointConfig",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "OptimConfig",
    "PeftConfig",
    "PreferenceDataConfig",
    "TrackingConfig",
    "TrainOn",
]
