"""The names that other tools use for our fields, and for settings that we do not have.

Sources: TRL and transformers, axolotl, LLaMA-Factory, Unsloth, litgpt, torchtune, ms-swift, tinker-cookbook. A name is
used only where the configuration has its target, so every flow shares this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crucible_train.config.fields import Tree


@dataclass(frozen=True)
class OtherName:
    """What another tool's name means here.

    Attributes:
        name: the other tool's name.
        targets: our dotted paths; the first that the configuration has is meant.
        words: their value -> ours, where the two differ; ``None`` marks a value that is always so here.
        share_only: only a share in [0, 1) means the same here.
        always: why nothing needs to be set, whatever the value.
        hint: what to do instead, where a value has no counterpart.
    """

    name: str
    targets: tuple[str, ...] = ()
    words: Mapping[str, str | None] | None = None
    share_only: bool = False
    always: str = ""
    hint: str = ""

    def target(self, tree: Tree) -> str | None:
        """The first of our paths that this configuration has."""
        return next((path for path in self.targets if path in tree.leaves), None)

    def known(self, tree: Tree) -> bool:
        """Whether the name means anything for this configuration."""
        return not self.targets or self.target(tree) is not None


_SAME_MEANING: dict[str, str] = {
    "model": "base_model model_name_or_path model_name model_id pretrained_model_name_or_path checkpoint_dir",
    "dataset": "dataset_name dataset_path data_path data_files train_file",
    "output_dir": "out_dir log_path output_path",
    "run_name": "wandb_name wandb_run_name experiment_name",
    "seed": "random_state random_seed",
    "data.max_rows": "max_samples max_train_samples",
    "data.max_length": "sequence_len sequence_length cutoff_len max_seq_length max_seq_len model_max_length",
    "data.eval_split": "eval_dataset validation_file",
    "data.renderer": "renderer_name chat_template template",
    "data.train_on": "train_on_what",
    "data.num_workers": "dataset_num_proc preprocessing_num_workers dataset_processes",
    "rollout.max_tokens": "max_completion_length max_new_tokens max_response_length",
    "algorithm.kl_coef": "beta kl_loss_coef kl_penalty_coef",
    "algorithm.loss": "loss_fn",
    "algorithm.mask_truncated": "mask_truncated_completions",
    "train.num_generations": "group_size num_return_sequences rollout_n",
    "peft.use_peft": "use_lora",
    "peft.lora_r": "lora_rank",
    "peft.lora_target_modules": "lora_target target_modules",
    "train.learning_rate": "lr",
    "train.lr_scheduler_type": "lr_scheduler lr_schedule",
    "train.num_train_epochs": "num_epochs epochs n_epochs",
    "train.max_steps": "max_train_steps",
    "train.per_device_train_batch_size": "micro_batch_size batch_size per_device_batch_size train_batch_size",
    "train.gradient_accumulation_steps": "gradient_accumulation_iters grad_accum_steps accumulate_grad_batches",
    "train.adam_beta1": "beta1",
    "train.adam_beta2": "beta2",
    "train.adam_epsilon": "eps adam_eps",
    "train.max_grad_norm": "gradient_clipping gradient_clip_val grad_clip clip_grad_norm",
    "engine.activation_checkpointing": "gradient_checkpointing enable_activation_checkpointing",
    "engine.precision": "dtype torch_dtype",
    "eval.eval_steps": "eval_every",
    "checkpoint.save_steps": "save_every",
    "checkpoint.save_total_limit": "max_checkpoints keep_last_n_checkpoints",
    "checkpoint.resume_from_checkpoint": "load_checkpoint_path resume",
}

_NOT_A_COUNT = "data.eval_split takes a share of the rows in [0, 1), not a count; or the path of another data set"
_NO_QUANTISED_TRAINING = "weights are not quantised for training; remove it (peft.use_peft=true keeps memory small)"
_NO_FLOAT16 = "float16 is not offered; use engine.precision=bfloat16 or float32"
_BATCH_PRODUCT = "set train.per_device_train_batch_size and train.gradient_accumulation_steps; it is their product"
_BY_STEPS = "give {} instead: every N steps, or every share of the run in (0, 1)"
_SPLIT_BY_NAME = "give data.eval_split instead: a share of the rows in [0, 1), or the path of another data set"
_ALL_LINEAR = "name the modules in peft.lora_target_modules"


def _trains_on(name: str, if_true: str, if_false: str) -> OtherName:
    return OtherName(name, ("data.train_on",), {"true": if_true, "false": if_false}, hint="use data.train_on")


def _lora_or_full(name: str) -> OtherName:
    words = {"lora": "true", "full": "false", "none": "false", "null": "false", "": "false"}
    return OtherName(name, ("peft.use_peft",), words, hint="only lora and full are offered; use peft.use_peft")


_OTHER_MEANING: tuple[OtherName, ...] = (
    OtherName(
        "warmup_ratio", ("train.warmup_steps",), share_only=True, hint="train.warmup_steps takes a share in [0, 1)"
    ),
    *(
        OtherName(name, ("data.eval_split",), share_only=True, hint=_NOT_A_COUNT)
        for name in ("val_set_size", "val_size", "test_size", "val_split_fraction", "split_dataset_ratio")
    ),
    OtherName("dataset_test_split", words={}, hint=_SPLIT_BY_NAME),
    OtherName("global_batch_size", words={}, hint=_BATCH_PRODUCT),
    OtherName("datasets", words={}, hint="give one data set as dataset: a path, a folder or a hub id"),
    _trains_on("assistant_only_loss", "all_assistant_messages", "all_tokens"),
    _trains_on("completion_only_loss", "last_assistant_message", "all_tokens"),
    _trains_on("mask_prompt", "all_assistant_messages", "all_tokens"),
    _trains_on("train_on_inputs", "all_tokens", "all_assistant_messages"),
    _trains_on("train_on_prompt", "all_tokens", "all_assistant_messages"),
    _trains_on("mask_history", "last_assistant_turn", "all_assistant_messages"),
    *(_lora_or_full(name) for name in ("adapter", "finetuning_type", "tuner_type", "train_type")),
    OtherName("full_finetuning", ("peft.use_peft",), {"true": "false", "false": "true"}, hint="use peft.use_peft"),
    OtherName("lora_target_linear", ("peft.lora_target_modules",), {"true": "all-linear"}, hint=_ALL_LINEAR),
    OtherName("load_in_4bit", words={"false": None}, hint=_NO_QUANTISED_TRAINING),
    OtherName("load_in_8bit", words={"false": None}, hint=_NO_QUANTISED_TRAINING),
    OtherName(
        "bf16",
        ("engine.precision",),
        {"true": "bfloat16", "full": "bfloat16", "false": "float32", "auto": "auto"},
        hint="use engine.precision",
    ),
    OtherName("fp16", words={"false": None}, hint=_NO_FLOAT16),
    OtherName(
        "use_cpu", ("engine.device",), {"true": "cpu", "false": "auto"}, hint="use engine.device: auto, cpu or cuda"
    ),
    *(
        OtherName(name, always="conversations are always packed into streams, and none sees another")
        for name in ("packing", "sample_packing", "packed")
    ),
    *(
        OtherName(name, always="no padding is computed, so there is nothing to group or pad")
        for name in ("group_by_length", "pad_to_sequence_len")
    ),
    *(
        OtherName(name, always="evaluation batches follow engine.micro_batch_tokens")
        for name in ("per_device_eval_batch_size", "eval_batch_size")
    ),
    *(OtherName(name, always="every step is logged") for name in ("logging_steps", "log_every")),
    *(
        OtherName(
            name,
            words=dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf")),
            hint="only AdamW is offered; remove it",
        )
        for name in ("optim", "optimizer")
    ),
    OtherName(
        "eval_strategy", ("eval.eval_steps",), {"no": "0", "steps": None}, hint=_BY_STEPS.format("eval.eval_steps")
    ),
    OtherName(
        "save_strategy",
        ("checkpoint.save_steps",),
        {"no": "0", "steps": None},
        hint=_BY_STEPS.format("checkpoint.save_steps"),
    ),
    OtherName(
        "scale_rewards",
        ("algorithm.advantage",),
        {"group": "group_normalised", "true": "group_normalised", "none": "group_mean", "false": "group_mean"},
        hint="use algorithm.advantage",
    ),
    OtherName(
        "epsilon", words={}, hint="give algorithm.clip_low and clip_high: bounds of the ratio, such as 0.8 and 1.2"
    ),
    OtherName("num_iterations", words={}, hint="give algorithm.num_substeps: optimizer steps that a batch is cut into"),
    OtherName("reward_funcs", words={}, hint="give env.name=prompts and env.options={reward: module:function}"),
    OtherName("do_train", words={"true": None}, hint="to check without training use --dry-run"),
    OtherName("overwrite_output_dir", always="each training has a folder of its own, and none is overwritten"),
    OtherName("push_to_hub", words={"false": None}, hint="this command does not publish; remove it"),
    OtherName("trust_remote_code", words={"false": None}, hint="code that comes with a model is not run; remove it"),
    OtherName("evals_per_epoch", words={}, hint=_BY_STEPS.format("eval.eval_steps")),
    OtherName("saves_per_epoch", words={}, hint=_BY_STEPS.format("checkpoint.save_steps")),
    OtherName(
        "auto_resume_from_checkpoints",
        ("checkpoint.resume_from_checkpoint",),
        {"true": "auto", "false": "never"},
        hint="use checkpoint.resume_from_checkpoint: auto, never or a path",
    ),
)

OTHER_NAMES: Mapping[str, OtherName] = {
    **{name: OtherName(name, (path,)) for path, names in _SAME_MEANING.items() for name in names.split()},
    **{other.name: other for other in _OTHER_MEANING},
}

OTHER_WORDS: Mapping[str, Mapping[str, str]] = {
    "checkpoint.resume_from_checkpoint": {"true": "auto", "false": "never", "null": "auto"},
    "data.renderer": {"tokenizer_default": "auto"},
    "peft.lora_target_modules": {"all": "all-linear"},
    "report_to": {"none": "[]"},
    "train.lr_scheduler_type": {"constant_with_warmup": "constant", "warmup_stable_decay": "wsd"},
}
"""Values that other tools use for a field of ours: path -> their word -> ours."""
