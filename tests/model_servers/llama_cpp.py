"""llama.cpp's own server on the tiny model, its weights written as GGUF."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@contextmanager
def llama_cpp(model_dir: Path, folder: Path) -> Iterator[str]:
    """The address of a server of the model in ``model_dir``, until the block ends; GGUF goes to ``folder``."""
    import xllamacpp

    path = folder / "tiny.gguf"
    write_gguf(model_dir, path)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.port, params.warmup, params.verbosity = 0, False, 0
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 2048, 2, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server


def write_gguf(model_dir: Path, path: Path) -> None:
    """A Llama with tied weights and the SmolLM2 tokenizer, in float32."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((model_dir / "tokenizer.json").read_text(encoding="utf-8")))
    for name, value in load_file(model_dir / "model.safetensors").items():
        if name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", value)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", value)
        elif name.startswith("model.layers."):
            _, _, layer, *rest = name.removesuffix(".weight").split(".")
            part = _PARTS[".".join(rest)]
            count = {"attn_q": heads, "attn_k": kv_heads}.get(part)
            writer.add_tensor(f"blk.{layer}.{part}.weight", _interleaved(value, count) if count else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order that llama.cpp rotates: pairs beside each other, not half a head apart."""
    return np.ascontiguousarray(
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    )


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any]) -> None:
    import gguf

    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    names = {**{number: name for name, number in vocab.items()}, **added}
    kinds = {number: gguf.TokenType.CONTROL if number in added else gguf.TokenType.NORMAL for number in names}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([names[number] for number in range(len(names))])
    writer.add_token_types([kinds[number] for number in range(len(names))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
