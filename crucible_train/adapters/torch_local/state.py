"""The optimizer, and what the engine stores and restores: weights and moments, safetensors and JSON only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crucible_train import files
from crucible_train.adapters.torch_local.loading import EngineModel
from crucible_train.errors import CheckpointError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
FULL_WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(parameters: Sequence[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW in one fused pass over the weights; vectors (norms, biases) are not decayed."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "decays": True},
        {"params": [p for p in parameters if p.ndim <= 1], "decays": False},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of the state, taken between two steps; training goes on while it is written."""

    weights: Mapping[str, Tensor]
    weights_file: str
    configs: Mapping[str, str]
    optimizer: Mapping[str, Tensor] | None

    def write(self, folder: Path) -> None:
        """Write the files into a folder."""
        save_file(dict(self.weights), folder / self.weights_file, metadata={"format": "pt"})
        for name, text in self.configs.items():
            files.write_text(folder / name, text)
        if self.optimizer is not None:
            save_file(dict(self.optimizer), folder / OPTIMIZER, metadata={"format": "pt"})


@torch.no_grad()
def take_snapshot(
    model: EngineModel,
    parameters: Sequence[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer | None,
    base_name: str,
) -> Snapshot:
    """Copy weights and, where one is given, the optimizer's moments; an adapter's file names its base model so."""
    if model.peft is not None:
        weights = get_peft_model_state_dict(model.peft)
        config = model.peft.peft_config["default"].to_dict() | {"base_model_name_or_path": base_name}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        configs = {"adapter_config.json": json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n"}
        name = ADAPTER_WEIGHTS
    else:
        weights = dict(model.causal.named_parameters())
        configs = {"config.json": model.causal.config.to_json_string()}
        name = FULL_WEIGHTS
    return Snapshot(
        weights={key: value.detach().to("cpu", copy=True).contiguous() for key, value in weights.items()},
        weights_file=name,
        configs=configs,
        optimizer=None if optimizer is None else _moments(parameters, optimizer),
    )


@torch.no_grad()
def restore(
    folder: Path,
    model: EngineModel,
    parameters: Sequence[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Load what ``Snapshot.write`` wrote.

    Raises:
        CheckpointError: the files are of another model or cannot be read.
    """
    try:
        if model.peft is not None:
            result = set_peft_model_state_dict(model.peft, load_file(folder / ADAPTER_WEIGHTS))
            if result.unexpected_keys:
                raise CheckpointError(f"{folder}: it holds weights that this model lacks: {result.unexpected_keys[0]}")
        else:
            _copy_into(dict(model.causal.named_parameters()), load_file(folder / FULL_WEIGHTS), folder)
        if optimizer is not None and (folder / OPTIMIZER).is_file():
            _set_moments(parameters, optimizer, load_file(folder / OPTIMIZER))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: not a state of this model: {error}") from error
    model.precision.refresh()


def _moments(parameters: Sequence[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in parameters:
        state = optimizer.state.get(parameter)
        if state:
            found |= {f"{kind}.{name}": state[kind].to("cpu", copy=True) for kind in _MOMENTS}
            found[f"step.{name}"] = state["step"].to("cpu", copy=True).reshape(1)
    return found


def _set_moments(
    parameters: Sequence[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer, stored: Mapping[str, Tensor]
) -> None:
    optimizer.state.clear()
    for name, parameter in parameters:
        if f"step.{name}" in stored:
            optimizer.state[parameter] = {
                "step": stored[f"step.{name}"].reshape(()).to(parameter.device, copy=True),
                **{kind: stored[f"{kind}.{name}"].to(parameter.device, copy=True) for kind in _MOMENTS},
            }


def _copy_into(parameters: Mapping[str, nn.Parameter], stored: Mapping[str, Tensor], folder: Path) -> None:
    if missing := sorted(set(parameters) - set(stored)):
        raise CheckpointError(f"{folder}: weights are missing: {missing[0]}")
    for name, parameter in parameters.items():
        parameter.copy_(stored[name])
