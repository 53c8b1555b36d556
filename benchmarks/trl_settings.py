"""What TRL's trainers are told on every side: the optimizer of ours, no schedule, nothing saved or reported."""

SETTINGS = {
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}
