"""Writes the weights that all sides of the SFT speed benchmark begin with.

    python -m benchmarks.sft_weights SHAPE MODEL_FOLDER ADAPTER_FOLDER [FROM_FOLDER [SEED]]

A model of random weights in MODEL_FOLDER, unless FROM_FOLDER is given and holds one, and a fresh LoRA adapter for it.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from benchmarks.sft_workload import SHAPES

_CONFIGS = {"Qwen3": Qwen3Config, "Llama": LlamaConfig}


def main() -> None:
    seed = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    torch.manual_seed(seed)
    if len(sys.argv) > 4 and sys.argv[4]:
        model = AutoModelForCausalLM.from_pretrained(sys.argv[4], dtype=torch.float32)
    else:
        model = random_model(sys.argv[1], seed)
    model.save_pretrained(Path(sys.argv[2]))
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(Path(sys.argv[3]))


def random_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A model of this shape, the same every time."""
    shape = dict(SHAPES[name])
    torch.manual_seed(seed)
    config = _CONFIGS[shape.pop("architecture")](
        **shape,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


if __name__ == "__main__":
    main()
