"""GGUF to safetensors."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crucible_train.adapters.torch_local.loading import quiet, refuse_missing
from crucible_train.errors import ModelError


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model of a GGUF file, weights in bfloat16, and the tokenizer transformers makes of it.

    Raises:
        ModelError: transformers cannot read it.
    """
    try:
        with quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                source.parent,
                gguf_file=source.name,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
            refuse_missing(found["missing_keys"], source)
            # The weights are whole again; what says otherwise would make transformers refuse to save them.
            model.hf_quantizer, model.is_quantized = None, False
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.config.name_or_path = ""
            model.to(torch.bfloat16).save_pretrained(folder)
            AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True).save_pretrained(
                folder
            )
    except ModelError:
        raise
    except Exception as error:  # a torn file raises whatever its bytes lead to, the tokenizers' library bare Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model: {source}: the GGUF file could not be converted: {reason}") from error
