"""An adapter's update added to the weights it adapts: ``W + s B A``, in float32, stored as the base is."""

from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from crucible_train.adapters.torch_local.loading import quiet, refuse_missing
from crucible_train.errors import ModelError


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """Write the model of ``base`` with the adapter's update added into a folder that transformers reads.

    Raises:
        ModelError: one of the two cannot be read.
    """
    try:
        with quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                base,
                output_loading_info=True,
                dtype="auto",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
            refuse_missing(found["missing_keys"], base)
            dtype = model.dtype
            merged = PeftModel.from_pretrained(model.to(torch.float32), adapter).merge_and_unload(safe_merge=True)
            merged.config.name_or_path = ""
            merged.to(dtype).save_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model: {base} with the adapter {adapter} could not be merged: {reason}") from error
